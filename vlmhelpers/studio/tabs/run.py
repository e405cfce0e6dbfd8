"""Run: started, watched, stopped and gone on with; what it learns, drawn while it trains."""

import ipywidgets as widgets
from markupsafe import Markup

from vlmhelpers.common.display import Html, html_table
from vlmhelpers.studio.chart import Line, draw
from vlmhelpers.studio.controls import make_switch
from vlmhelpers.studio.tabs.tab import Tab, as_html, said
from vlmhelpers.studio.texts import word
from vlmhelpers.training.background import TrainingRun

_OVER = ("stopped", "failed", "lost")  # from here `start` goes on
_LOG_LINES, _SAMPLED_STEPS = 30, 6
_GIB = 2**30
_CHARTS = {  # what is logged -> the key of the chart's title
    "loss": "loss",
    "reward": "reward",
    "rewards/accuracies": "accuracies",
    "learning_rate": "learning_rate",
}


class RunTab(Tab):
    name = "run"

    def build(self):
        studio = self.studio
        self.state, self.charts, self.samples, self.log, self.why, self.others = (widgets.HTML() for _ in range(6))
        self.folded_log, self.accept = widgets.Accordion([self.log], selected_index=None), make_switch("accept_changes")
        self.bar = widgets.FloatProgress(min=0, max=1, layout=widgets.Layout(width="auto"))
        self.log_scale = widgets.Checkbox(indent=False)
        self.log_scale.observe(lambda change: self.refresh(), names="value")
        shown = {"chart": self.charts, "samples": self.samples, "log": self.log, "why": self.why, "runs": self.others}
        for name, widget in shown.items():
            widget.add_class(f"studio-{name}")
        self.log_scale.add_class("studio-log_scale")
        yield self.row(studio.form.fields["output_dir"].widget, self.button("new", studio.new_run), self.accept.widget)
        yield self.row(
            self.button("start", lambda: self.work("start", lambda: studio.start(self.accept.value))),
            self.button("stop", lambda: self._now(studio.stop)),
            self.button("abort", lambda: self._now(studio.abort)),
            self.button("tensorboard", lambda: self.work("tensorboard", studio.tensorboard)),
        )
        yield from (
            self.why,
            self.out,
            self.state,
            self.bar,
            self.log_scale,
            self.charts,
            self.samples,
            self.folded_log,
            self.others,
        )

    def show(self, found):
        """What has many lines, as a plan has, in one that opens."""
        summary, more, _ = str(found).partition("\n")
        if more:
            folded = Markup("<details><summary>{}</summary>{}</details>").format(summary, Markup(as_html(found)))
            found = Html(folded, summary)
        super().show(found)

    def _now(self, act):
        try:
            act()
        except (ValueError, OSError) as error:
            self.fail(error)
        self.refresh()

    def speak(self, texts):
        super().speak(texts)
        self.accept.speak(texts)
        self.folded_log.set_title(0, texts["log"])
        self.log_scale.description = texts["label.log_scale"]

    def refresh(self):
        """Shows what the run's folder says; what has not changed is not sent."""
        run = self.studio.run
        state, entries = run.state, run.entries()
        self.state.value = Markup('<div role="status" class="studio-state" data-state="{}">{}</div>').format(
            state, self._line(run, state)
        )
        last = next((entry for entry in reversed(entries) if "max_steps" in entry), None)
        done = last["step"] / max(last["max_steps"], 1) if last else 0
        self.bar.value = 1 if state == "finished" else done
        drawn = Markup("").join(self.draw(run))
        self.charts.value = Markup('<div class="studio-charts">{}</div>').format(drawn) if drawn else ""
        self.samples.value = self._samples(run)
        lines = "\n".join(run.log_lines(_LOG_LINES))
        self.log.value = Markup('<pre tabindex="0">{}</pre>').format(lines)
        self.others.value = self._runs()
        self._offer(run, state)

    def _offer(self, run, state):
        """What can be done now, and why nothing can be started."""
        texts, studio = self.studio.texts, self.studio
        can_resume = state in _OVER and any(run.folder.glob("checkpoint-*"))
        begin = "queue" if studio.others_running else "resume" if can_resume else "start"
        problems = [f"{word(texts, 'label', name)}: {problem}" for name, problem in studio.problems.items() if name]
        if state == "finished" and not self.accept.value:
            problems.append(texts["is_finished"])
        self.why.value = Markup("").join(said(f"\u26a0 {problem}", "status") for problem in problems)
        self.buttons["start"].description = texts[f"button.{begin}"]
        self.buttons["start"].disabled = run.is_running or bool(problems) or studio.worker.is_busy
        self.buttons["stop"].disabled = self.buttons["abort"].disabled = not run.is_running

    def _runs(self):
        """All runs of the folder, where there are several."""
        texts, runs = self.studio.texts, self.studio.runs
        if len(runs) < 2:
            return ""
        rows = [(name, texts[f"state.{run.state}"]) for name, run in runs.items()]
        return Markup("<h4>{}</h4>{}").format(texts["runs"], html_table([], rows))

    def _line(self, run, state):
        texts = self.studio.texts
        parts = [Markup("<b>{}</b>").format(texts[f"state.{state}"])]
        if last := run.last:
            loss = f"{last['loss']:.4g}"
            parts.append(texts["progress"].format(step=last["step"], max_steps=last["max_steps"], loss=loss))
            if last.get("seconds_left") is not None:
                parts.append(texts["time_left"].format(time=_duration(last["seconds_left"])))
            if last.get("tokens_per_second"):
                parts.append(texts["speed"].format(tokens=f"{last['tokens_per_second']:,.0f}"))
            if last.get("memory"):
                parts.append(texts["memory"].format(gib=f"{last['memory'] / _GIB:.1f}"))
        if early := next((entry for entry in reversed(run.entries()) if entry.get("event") == "early_stopped"), None):
            parts.append(texts["stopped_early"].format(step=early["best_step"]))
        line = Markup(" &middot; ").join(parts)
        return line + said(run.error, "alert") if state == "failed" and run.error else line

    def draw(self, run: TrainingRun) -> list[Markup]:
        """The charts of what a run has logged: loss, reward, accuracy of preferences, learning rate."""
        texts, last, charts = self.studio.texts, run.last, []
        for name, title in _CHARTS.items() if last else ():
            lines = [Line(texts["chart.training"], run.history(name))]
            if name == "loss" and (validated := run.history("eval_loss")):
                lines.append(Line(texts["chart.validation"], validated))
            if lines[0].points:
                log = name == "loss" and self.log_scale.value
                charts.append(draw(texts[f"chart.{title}"], lines, last["max_steps"], texts["chart.step"], log))
        return charts

    def _samples(self, run):
        """The first, and the last answers to the sampled rows, a column for each time."""
        found, texts = run.samples, self.studio.texts
        rows, steps = found["rows"], list(found["answers"])
        if not steps:
            return ""
        steps = steps[:1] + steps[1:][-_SAMPLED_STEPS:]
        heads = ["", "", *(texts["samples.step"].format(step=step) for step in steps), texts["samples.expected"]]
        table = [
            [
                Markup("").join(Markup('<img src="{}" alt="">').format(image) for image in row["images"]),
                row["prompt"],
                *("".join(found["answers"][step][number : number + 1]) for step in steps),  # once there were fewer rows
                row["expected"],
            ]
            for number, row in enumerate(rows)
        ]
        return Markup("<h4>{}</h4>{}").format(texts["samples"], html_table(heads, table))


def _duration(seconds):
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
