"""The Colab notebook, from its first cell to its last, on eight CPU devices."""

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
from small import digits

nbclient, _, _ = (
    pytest.importorskip(name, reason="the notebook wants what the extra `test` installs")
    for name in ("nbclient", "ipykernel", "ipywidgets")
)

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "experiments" / "colab.ipynb"


def read():
    import nbformat

    return nbformat.read(NOTEBOOK, as_version=4)


def write_idx(path, values):
    header = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes(), 1))


def write_mnist(folder):
    """Real digits in MNIST's files, so that nothing is downloaded."""
    image, label = digits()
    order = np.random.default_rng(0).permutation(len(image))[:1000]
    image = image[order].reshape(-1, 28, 28)
    label = label[order].astype(np.uint8)
    folder.mkdir()
    for stem, rows in (("train", slice(0, 800)), ("t10k", slice(800, 1000))):
        write_idx(folder / f"{stem}-images-idx3-ubyte.gz", image[rows])
        write_idx(folder / f"{stem}-labels-idx1-ubyte.gz", label[rows])


def test_it_is_kept_without_outputs_and_without_places():
    notebook = read()
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None
    text = NOTEBOOK.read_text()
    assert not any(place in text for place in ("/home/", "/root", "/tmp", "file:"))
    assert "index-url" not in text


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colab")
    write_mnist(folder / "mnist")
    env = {
        **os.environ,
        "JAXOPS_SMALL": "1",
        "JAXOPS_RUNS": str(folder / "runs"),
        "JAXOPS_DATA_DIR": str(folder),
        "PYTHONPATH": str(ROOT),  # the install cell finds jaxops and installs nothing
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "8",
        "NPROC": "16",
        "IPYTHONDIR": str(folder / "ipython"),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    notebook = read()
    client = nbclient.NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=env)
    return notebook, folder / "runs"


def printed(cell, name="stdout"):
    outputs = [output for output in cell.get("outputs", []) if output.output_type == "stream"]
    return "".join(output.text for output in outputs if output.name == name)


@pytest.mark.slow
def test_every_cell_runs_and_complains_of_nothing(executed):
    notebook, _ = executed
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not any(output.output_type == "error" for output in cell.outputs)
        complaints = [
            line
            for line in printed(cell, "stderr").replace("\r", "\n").splitlines()
            if line.strip() and "step/s" not in line and "/step" not in line and "?step" not in line
        ]
        assert not complaints, complaints


@pytest.mark.slow
def test_it_trains_on_all_devices_and_predicts(executed):
    notebook, runs = executed
    text = "".join(printed(cell) for cell in notebook.cells)
    assert "8 x CPU" in text and "the state lies on 8 device(s)" in text
    accuracy = float(text.split("'accuracy': ")[1].split("}")[0].split(",")[0])
    assert accuracy > 0.3  # eight steps of C03; by chance 0.1
    sorted_rows = [line for line in text.splitlines() if " -> " in line]
    assert len(sorted_rows) == 5
    right = []
    for line in sorted_rows:
        given, found = (np.array(part.split(), int) for part in line.split(" -> "))
        right.append(np.sort(given) == found)
    assert np.mean(right) > 0.3  # sixty steps; by chance 0.1
    assert {path.name for path in runs.iterdir()} == {
        *("c03.safetensors", "c03_curves.png", "c03_predictions.png"),
        *("sorter.safetensors", "sorter_curves.png"),
    }
    images = [
        output
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "image/png" in output.get("data", {})
    ]
    assert len(images) == 3
