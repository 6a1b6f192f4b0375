"""The place where running trials keep their state: a directory or bucket that every node of the cluster can reach."""

from __future__ import annotations

import contextlib
import uuid
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow
import pyarrow.fs
import ray
from ray import tune
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from forecast.config import home_expanded
from forecast.errors import StudyError

NODE_ANSWER = 60.0
"""Seconds a node has to report whether it can reach the place."""


@dataclass(frozen=True)
class StateStore:
    """One job's directory in such a place.

    Attributes:
        uri: the place: a local path, or an address such as ``s3://bucket/tune``.
        job: the name of the job's directory there.
    """

    uri: str
    job: str

    @classmethod
    def at(cls, place: str, job: str) -> StateStore:
        """Return the store of ``job`` in ``place``: an address, or a path that may be relative."""
        return cls(place if "://" in place else str(home_expanded(place).absolute()), job)

    @property
    def _opened(self) -> tuple[pyarrow.fs.FileSystem, PurePosixPath]:
        filesystem, root = pyarrow.fs.FileSystem.from_uri(self.uri)
        return filesystem, PurePosixPath(root) / self.job

    @property
    def path(self) -> str:
        """The job's directory, in the form that Tune expects."""
        address, mark, query = self.uri.partition("?")
        return f"{address.rstrip('/')}/{self.job}{mark}{query}"

    def name_of(self, checkpoint: tune.Checkpoint) -> str:
        """Return the name of a trial's saved state: its path relative to this directory."""
        return str(PurePosixPath(checkpoint.path).relative_to(self._opened[1]))

    def open(self, name: str) -> tune.Checkpoint:
        """Open the state that ``name_of`` named; nothing is read yet."""
        filesystem, directory = self._opened
        return tune.Checkpoint(str(directory / name), filesystem)

    def check(self) -> None:
        """Check that this process can write there, and that every other node sees the file.

        Raises:
            StudyError: when it cannot write, or a node does not see the file.
        """
        mark = f".reachable_{uuid.uuid4().hex}"
        try:
            filesystem, directory = self._opened
            filesystem.create_dir(str(directory), recursive=True)
            with filesystem.open_output_stream(str(directory / mark)) as stream:
                stream.write(b"here")
            blind = self._nodes_without(mark)
            filesystem.delete_file(str(directory / mark))
        except (OSError, pyarrow.ArrowException) as error:
            reason = " ".join(str(error).split())
            raise StudyError(
                f"`storage_path` {self.uri}: cannot be written ({reason}); name an existing directory or bucket "
                "that you may write to"
            ) from error
        if blind:
            raise StudyError(
                f"{', '.join(blind)} cannot see {self.uri} of this machine; set `storage_path` to a directory (NFS) or "
                "bucket (s3://...) that every node can reach"
            )

    def _nodes_without(self, mark: str) -> list[str]:
        here = ray.get_runtime_context().get_node_id()
        others = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here]
        sees = ray.remote(num_cpus=0)(_sees)
        answers = {
            sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(self, mark): node["NodeManagerAddress"]
            for node in others
        }
        blind = []
        for answer, address in answers.items():
            try:
                reached = ray.get(answer, timeout=NODE_ANSWER)
            except ray.exceptions.RayError:
                reached = True  # a node that has left, or is busy, is no reason not to start
            if not reached:
                blind.append(address)
        return blind

    def discard(self, checkpoint: tune.Checkpoint) -> None:
        """Delete a state that a later one has replaced; if that fails, it stays."""
        filesystem, _ = self._opened
        with contextlib.suppress(OSError):
            filesystem.delete_dir(checkpoint.path)

    def remove(self) -> None:
        """Delete the job's directory, but not the place itself, which is not ours."""
        with contextlib.suppress(OSError):
            filesystem, directory = self._opened
            filesystem.delete_dir(str(directory))


def _sees(store: StateStore, mark: str) -> bool:
    """Return whether a node sees the file ``mark``; runs on that node."""
    try:
        filesystem, directory = store._opened
        found = filesystem.get_file_info(str(directory / mark))
    except (OSError, pyarrow.ArrowException):
        return False
    return bool(found.type == pyarrow.fs.FileType.File)
