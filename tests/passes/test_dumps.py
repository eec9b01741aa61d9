from __future__ import annotations

import logging

import torch
from torch import fx

from torch_piecewise.passes.dumps import DumpFolder
from torch_piecewise.ranges import UNBOUNDED, Range


def graph() -> fx.Graph:
    made = fx.Graph()
    made.output(made.call_function(torch.ops.aten.sin.default, (made.placeholder("x"),)))
    return made


def test_each_run_has_a_folder_of_its_own(tmp_path):
    folders = [
        DumpFolder.under(tmp_path, range).path for range in (Range(1, 8), Range(1, 8), Range(9, UNBOUNDED))
    ]
    assert [str(path.relative_to(tmp_path)) for path in folders if path] == [
        "passes/1-8.0",
        "passes/1-8.1",
        "passes/9-inf.0",
    ]


def test_a_file_says_position_pass_and_moment(tmp_path):
    dumps = DumpFolder.under(tmp_path, Range(4, 4))
    dumps.write(3, "fuse/norms", "before", graph())
    file = tmp_path / "passes" / "4-4.0" / "03_fuse_norms.before.txt"
    assert file.read_text() == "x = placeholder\nsin_default = aten.sin.default(x)\nreturn sin_default\n"


def test_no_path_writes_nothing(tmp_path):
    dumps = DumpFolder.under(None, Range(1, 8))
    dumps.write(0, "fuse", "before", graph())
    assert dumps.path is None
    assert not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    (tmp_path / "passes").write_text("a file where the folder should be")
    with caplog.at_level(logging.WARNING, logger="torch_piecewise"):
        dumps = DumpFolder.under(tmp_path, Range(1, 8))
    assert dumps.path is None
    assert "No pass dumps" in caplog.text


def test_a_dump_that_cannot_be_written_is_a_warning(tmp_path, caplog):
    dumps = DumpFolder.under(tmp_path, Range(1, 8))
    assert dumps.path is not None
    dumps.path.rmdir()
    with caplog.at_level(logging.WARNING, logger="torch_piecewise"):
        dumps.write(0, "fuse", "after", graph())
    assert "No dump of the graph after fuse" in caplog.text


def test_a_folder_says_whose_graph_it_is(tmp_path):
    made = DumpFolder.under(tmp_path, Range(1, 8), "my/tag.submod_0")
    assert made.path == tmp_path / "passes" / "my_tag.submod_0.1-8.0"
