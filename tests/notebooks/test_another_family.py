"""A family beside those that the guides are about goes through notebooks 01, 04 and 05 by its name alone."""

import pytest

from vlmhelpers.common.records import read_records

pytestmark = pytest.mark.slow

FAMILY = "internvl"


@pytest.fixture
def run(execute_cells, tmp_path):
    def run(number, parameters, **options):
        return read_records(execute_cells(number, parameters | {"OUTPUT_DIR": str(tmp_path)}, **options))

    return run


def test_a_table_with_images(run):
    records = run("01", {"MODEL_ID": FAMILY})
    assert records["base_exact_percent"] <= 5 and records["tuned_exact_percent"] >= 90
    assert records["blank_exact_percent"] <= 5


def test_rows_of_ones_own(run):
    """Without its experiments, which train twice more."""
    shorter = {"experiments = ": "experiments = False and "}
    records = run("04", {"MODEL_ID": FAMILY}, replaced=shorter, keep=lambda cell: "memory_table(" not in cell.source)
    assert records["base_exact_percent"] <= 5 and records["tuned_exact_percent"] >= 90
    assert records["same_answers_after_loading_percent"] == 100
    assert records["blank_exact_percent"] <= 5


def test_evaluation_and_exports(run):
    records = run("05", {"BASE": FAMILY, "RUN": "outputs/none"})
    assert records["base_exact_percent"] <= 5 and records["tuned_exact_percent"] >= 90
    assert records["verdict"] == "It uses the image" and records["verdict_of_guesses"] == "It does not use the image"
    assert records["same_answers_in_batches_percent"] == records["merged_like_adapter_percent"] == 100
    assert records["accident_found"]
