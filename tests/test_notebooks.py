"""The notebooks as they are stored, with their outputs, and run anew."""

import json
import re

import pytest

from tests.conftest import ROOT

nbformat = pytest.importorskip("nbformat", reason="no nbformat: the extra 'test' brings it")
NOTEBOOK = ROOT / "tools" / "notebooks" / "first_look.ipynb"
PATH = re.compile(r"/(home|root|tmp|usr|work|opt|var|Users|private)/|[A-Z]:\\\\")


def check(notebook) -> None:
    """The outputs are those of a run that has succeeded, and name no folder of the machine."""
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "execute_result", "display_data"}
    pictures = [output.data.pop("image/png") for output in outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 5
    text = json.dumps(outputs)
    assert not PATH.search(text)
    assert 85 < float(re.search(r"accuracy: ([\d.]+) %", text)[1]) <= 100
    assert re.search(r"LayerMeasures of 450 samples, means\\nlayer  rc_half", text)


def test_the_stored_outputs_are_those_of_a_run():
    assert NOTEBOOK.stat().st_size < 400_000
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == [*range(1, len(cells) + 1)]
    assert not PATH.search(json.dumps([cell.source for cell in notebook.cells]))
    check(notebook)


@pytest.mark.slow
def test_it_runs():
    client = pytest.importorskip("nbclient", reason="no nbclient: the extra 'test' brings it")
    pytest.importorskip("ipykernel", reason="no ipykernel: the extra 'test' brings it")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    training = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert "EPOCHS = 12\n" in training.source
    training.source = training.source.replace("EPOCHS = 12\n", "EPOCHS = 5\n")  # which are enough for the check
    client.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    check(notebook)
