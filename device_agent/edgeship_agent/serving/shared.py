"""Tensors in shared memory: a memfd of the application, mapped by the inference service.

The service reads the memory in place. That is safe because a memfd that is sealed against shrinking cannot lose pages
under the reader (which would be SIGBUS), and because what says *where* tensors lie travels in the frame, which the
application cannot change any more once it was sent.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import mmap
import os
import stat
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from msgspec import Struct

from edgeship_agent.contract.errors import ContractError
from edgeship_agent.contract.frames import SharedTensor
from edgeship_agent.processing.arrays import Array, dtype_name
from edgeship_agent.runtime.tensors import dtype_of, is_possible_shape, travelling_dtype

_ALIGNMENT: Final = 64
#: Requests take turns in two halves, so that the last one may still be measured while the next is written.
_HALVES: Final = 2
#: Memory that a client maps beyond its tensors: alignment.
_SLACK_BYTES: Final = 1 << 16
_PAGE_BYTES: Final = mmap.PAGESIZE
#: Shape and type of an array.
Kind = tuple[tuple[int, ...], np.dtype[Any]]
#: Descriptions that a reader remembers, and the most tensors and characters of names of one: a client that describes
#: its memory anew with every request takes no more of the service's.
_REMEMBERED: Final = 4
_REMEMBERED_TENSORS: Final = 16
_REMEMBERED_NAMES: Final = 1024


def can_share() -> bool:
    """Whether this system has memfds."""
    return hasattr(os, "memfd_create") and hasattr(fcntl, "F_ADD_SEALS")


class OutgoingMemory:
    """An application's memfd: large enough for two requests, sealed against any change of size.

    Args:
        size_bytes: of one request's tensors.

    Raises:
        OSError: the system has no memory for it.
    """

    def __init__(self, size_bytes: int) -> None:
        self.half_bytes = -(-size_bytes // _PAGE_BYTES) * _PAGE_BYTES
        self.is_passed = False
        self.fd = os.memfd_create("edgeship", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.fd, _HALVES * self.half_bytes)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
            self._map = mmap.mmap(self.fd, _HALVES * self.half_bytes)
        except OSError:
            os.close(self.fd)
            raise
        self._turn = 0
        self._places: list[tuple[_Place, ...]] = [()] * _HALVES
        self._tensors: list[tuple[SharedTensor, ...]] = [()] * _HALVES

    def write_again(self, inputs: Mapping[str, Array]) -> tuple[SharedTensor, ...] | None:
        """Copy arrays of the names, types and shapes of the last ones but one; None, and nothing done, for others.

        An application sends the same kind of arrays again and again: where they go was worked out before. What lies
        there already, since the application was given :meth:`room`, is not copied.
        """
        turn = (self._turn + 1) % _HALVES
        places = self._places[turn]
        if len(places) != len(inputs):
            return None
        for place in places:
            array = inputs.get(place.name)
            if type(array) is not np.ndarray or array.shape != place.shape:
                return None
            if array.dtype is not place.dtype and array.dtype != place.dtype:
                return None
        for place in places:
            array = inputs[place.name]
            if array is not place.view:
                place.view[...] = array
        self._turn = turn
        return self._tensors[turn]

    def write(self, inputs: Mapping[str, Array]) -> tuple[SharedTensor, ...]:
        """Copy arrays into the half whose turn it is; returns where they lie.

        Raises:
            ContractError: a dtype that does not travel.
        """
        turn = (self._turn + 1) % _HALVES
        self._lay_out(turn, {name: (array.shape, array.dtype) for name, array in inputs.items()})
        for place in self._places[turn]:
            place.view[...] = inputs[place.name]
        self._turn = turn
        return self._tensors[turn]

    def room(self, kinds: Mapping[str, Kind]) -> dict[str, Array]:
        """Where the next request's arrays will lie, for the application to fill; as it was left two requests ago.

        Raises:
            ContractError: a dtype that does not travel.
        """
        turn = (self._turn + 1) % _HALVES
        if {place.name: (place.shape, place.dtype) for place in self._places[turn]} != kinds:
            self._lay_out(turn, kinds)
        return {place.name: place.view for place in self._places[turn]}

    def _lay_out(self, turn: int, kinds: Mapping[str, Kind]) -> None:
        offset = turn * self.half_bytes
        places, tensors = [], []
        for name, (shape, given) in kinds.items():
            dtype = travelling_dtype(name, np.empty(0, given))
            count = math.prod(shape)
            view = np.frombuffer(self._map, dtype, count, offset) if count else np.empty(0, dtype)
            places.append(_Place(name=name, dtype=given, shape=shape, view=view.reshape(shape)))
            tensors.append(SharedTensor(name=name, dtype=dtype_name(dtype), shape=shape, offset=offset))
            offset += aligned_bytes(count * dtype.itemsize)
        self._places[turn], self._tensors[turn] = tuple(places), tuple(tensors)

    def close(self) -> None:
        """Let go of the memory; the service keeps its mapping as long as it needs it, the application as well."""
        os.close(self.fd)
        self._places = [()] * _HALVES  # they view the map
        with contextlib.suppress(BufferError):  # of arrays that the application was given: it goes with them
            self._map.close()


class _Place(Struct, frozen=True, kw_only=True, eq=False):
    """Where an array of one name, type and shape goes."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    view: Array


def aligned_bytes(size_bytes: int) -> int:
    """How much of the shared memory an array of so many bytes takes."""
    return -(-size_bytes // _ALIGNMENT) * _ALIGNMENT


class PassedMemory:
    """The service's read-only mapping of a memfd that an application passed; the descriptor itself is not kept.

    Args:
        fd: closed in any case.
        max_request_bytes: most bytes of one request's tensors.

    Raises:
        ContractError: it is no memfd, not sealed against shrinking, of huge pages, empty, or too large.
    """

    def __init__(self, fd: int, max_request_bytes: int) -> None:
        self._max_request_bytes = max_request_bytes
        self._known: dict[tuple[SharedTensor, ...], dict[str, Array]] = {}
        try:
            _check_memfd(fd, _HALVES * max_request_bytes + _SLACK_BYTES)
            self._map = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise ContractError(f"the shared memory cannot be mapped: {error}") from error
        finally:
            os.close(fd)

    def arrays(self, tensors: tuple[SharedTensor, ...]) -> dict[str, Array]:
        """Read-only arrays over the tensors' bytes; of the last few descriptions the arrays are kept.

        Raises:
            ContractError: an unknown dtype, an impossible shape, or a tensor that does not lie within the memory.
        """
        known = self._known.get(tensors)
        if known is None:
            known = self._checked(tensors)
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            if len(tensors) <= _REMEMBERED_TENSORS and sum(len(tensor.name) for tensor in tensors) <= _REMEMBERED_NAMES:
                self._known[tensors] = known
        return known

    def _checked(self, tensors: tuple[SharedTensor, ...]) -> dict[str, Array]:
        found: dict[str, Array] = {}
        total_bytes = 0
        for tensor in tensors:
            dtype = dtype_of(tensor.name, tensor.dtype)
            if not is_possible_shape(tensor.shape):
                raise ContractError("impossible shape", key=tensor.name, got=str(tensor.shape)[:80])
            count = math.prod(tensor.shape)
            end = tensor.offset + count * dtype.itemsize
            total_bytes += count * dtype.itemsize
            if tensor.offset < 0 or end > len(self._map) or total_bytes > self._max_request_bytes:
                raise ContractError(
                    "a tensor outside the shared memory", key=tensor.name, expected=f"≤ {len(self._map)}", got=end
                )
            if count:
                found[tensor.name] = np.frombuffer(self._map, dtype, count, tensor.offset).reshape(tensor.shape)
            else:
                found[tensor.name] = np.zeros(tensor.shape, dtype)
        return found


def _check_memfd(fd: int, max_bytes: int) -> None:
    facts = os.fstat(fd)
    seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS) if stat.S_ISREG(facts.st_mode) else 0
    if not seals & fcntl.F_SEAL_SHRINK:
        # memory that can shrink under its reader kills the reader. Source: mmap(2), SIGBUS
        raise ContractError("shared memory must be a memfd that is sealed against shrinking (F_SEAL_SHRINK)")
    if os.fstatvfs(fd).f_bsize != _PAGE_BYTES:
        # a hole in huge pages needs a free huge page when it is read, and SIGBUS where there is none
        raise ContractError("shared memory of huge pages is not taken")
    if not 0 < facts.st_size <= max_bytes:
        raise ContractError("shared memory of this size is not taken", expected=f"1 … {max_bytes}", got=facts.st_size)
