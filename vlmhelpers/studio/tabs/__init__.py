"""The tabs of the panel, a module each, in their order."""

from vlmhelpers.studio.tabs.chat import ChatTab
from vlmhelpers.studio.tabs.data import DataTab
from vlmhelpers.studio.tabs.evaluate import EvaluateTab
from vlmhelpers.studio.tabs.export import ExportTab
from vlmhelpers.studio.tabs.method import MethodTab
from vlmhelpers.studio.tabs.model import ModelTab
from vlmhelpers.studio.tabs.run import RunTab
from vlmhelpers.studio.tabs.training import TrainingTab

TABS = (ModelTab, DataTab, MethodTab, TrainingTab, RunTab, EvaluateTab, ChatTab, ExportTab)
