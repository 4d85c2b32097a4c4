"""Attributes that a store refuses or forgets, remembered so that not every object is sent twice."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import replace

from ferry.core import ENCODING, HEADERS, REDIRECT, TAGS, TIER, TYPE, ErrorClass, Fatal, ObjectError, Refused, word_of
from ferry.storage.object_info import Sent

_LOOKED_FOR = {*HEADERS, REDIRECT} - {TYPE}  # a store may hide tags from those who may write them

# S3's InvalidStorageClass, InvalidArgument; Azure's InvalidBlobTier in words; Google's reason. Not RequestTimeout.
_ABOUT_TIER = re.compile(r"StorageClass|InvalidArgument|storage class|\(invalid\)")

Send = Callable[[Mapping[str, str]], Awaitable[Sent]]


def refused_attribute(error: ObjectError | Refused, attributes: Mapping[str, str]) -> str | None:
    """Returns the attribute that an upload may have been refused for.

    | status | the object has | |
    |---|---|---|
    | 400 about a class | a tier | TIER: the server does not know it (S3 API: InvalidStorageClass) |
    | 403, 501 | tags | TAGS: another right is needed for them, or the store has none |
    | any other | any | None |
    """
    status = error.status_code if isinstance(error, ObjectError) else 403
    if status == 400 and TIER in attributes and _ABOUT_TIER.search(str(error)):
        return TIER
    return TAGS if status in (403, 501) and TAGS in attributes else None


class AttributeRefusals:
    """What one store has refused, or taken and forgotten: single tiers, and other attributes altogether."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()
        # Refused with a body that could not be sent again without them: with its key, since it may be about the key.
        self._doubted: set[tuple[str, tuple[str, str]]] = set()
        self._looked_for: set[str] = set()
        self._looking = asyncio.Lock()  # an object is read again

    @property
    def tags(self) -> bool:
        """Whether the store has refused tags."""
        return _case(TAGS, {}) in self._known

    def split(self, attributes: Mapping[str, str]) -> tuple[dict[str, str], tuple[str, ...]]:
        """Returns the attributes that the store is not known to lose, and the names of the others."""
        lost = tuple(name for name in attributes if _case(name, attributes) in self._known)
        return {name: value for name, value in attributes.items() if name not in lost}, lost

    async def put(
        self, send: Send, read: Callable[[], Awaitable[Mapping[str, str]]] | None, attributes: Mapping[str, str],
        *, may_lose: bool, wait: bool = True, key: str = "", again: Callable[[], bool] = lambda: True,
    ) -> Sent:  # fmt: skip
        """Writes an object by ``send``, without what the store is known to lose or refuses now.

        The first object with a header is read again by ``read``, and with ``wait`` others with it wait. Some stores
        take headers that they do not keep, and say nothing (MinIO's gateway: Expires). Without ``may_lose`` raises
        ObjectError (LOST_ATTRIBUTE), before anything is written unless that object shows it.

        ``again``: whether ``send`` can send the same body once more. If not, a refusal raises ObjectError
        (STORE_ERROR), and the next try of ``key`` leaves the attribute out.
        """
        if read is None or not self._to_look_for(attributes):
            return await self._put(send, attributes, key, again, may_lose=may_lose)
        async with self._looking if wait else contextlib.nullcontext():
            if new := self._to_look_for(attributes):
                sent = await self._put(send, attributes, key, again, may_lose=may_lose)
                forgotten = await self._look(read, new)
                if forgotten and not may_lose:
                    raise lost_attributes(forgotten, written=True)
                return replace(sent, lost=(*sent.lost, *forgotten))
        return await self._put(send, attributes, key, again, may_lose=may_lose)

    async def _put(
        self, send: Send, attributes: Mapping[str, str], key: str, again: Callable[[], bool], *, may_lose: bool
    ) -> Sent:
        held, lost = self.split(attributes)
        if lost and not may_lose:
            raise lost_attributes(lost)
        doubted = {name: _case(name, held) for name in held if (key, _case(name, held)) in self._doubted}
        held = {name: value for name, value in held.items() if name not in doubted}
        try:
            sent = await send(held)
        except (ObjectError, Refused) as error:
            refused = refused_attribute(error, held)
            if refused is None:
                raise
            if not may_lose:
                raise error if isinstance(error, Refused) else lost_attributes([refused], str(error)) from None
            if not again():
                self._doubted.add((key, _case(refused, held)))
                text = f"the destination may refuse {word_of(refused)} ({error}); the object is read again without"
                raise ObjectError(ErrorClass.STORE_ERROR, text) from None
            sent = await send({name: value for name, value in held.items() if name != refused})
            self._known.add(_case(refused, held))  # after success without it: it was not about the key
            lost = (*lost, refused)
        self._known.update(doubted.values())
        lost = (*lost, *doubted)
        return replace(sent, lost=(*lost, *sent.lost))

    def _to_look_for(self, attributes: Mapping[str, str]) -> set[str]:
        return {name for name in _LOOKED_FOR - self._looked_for if attributes.get(name)}

    async def _look(self, read: Callable[[], Awaitable[Mapping[str, str]]], written: set[str]) -> tuple[str, ...]:
        """Returns which attributes an object has not kept. One that cannot be read, as in an archive, shows nothing.

        Raises ObjectError (LOST_ATTRIBUTE) if one is Content-Encoding, without which the bytes cannot be read. Each
        object with a coding is looked at then.
        """
        try:
            forgotten = tuple(sorted(written - (await read()).keys()))
        except (ObjectError, Fatal):
            forgotten = ()
        lost = set(forgotten) - {ENCODING}
        self._known.update((name, "") for name in lost)
        self._looked_for |= written - (set(forgotten) - lost)  # not sooner, since others wait for what is known then
        if ENCODING in forgotten:
            raise lost_attributes(forgotten, written=True)
        return forgotten


def lost_attributes(names: Collection[str], answer: str = "", *, written: bool = False) -> ObjectError:
    """Returns the error of an object that may lose nothing. ``written``: the store took and forgot its attributes."""
    end = "the object was written without" if written else "nothing was written"
    why = f" ({answer})" if answer else ""
    text = f"the destination does not keep {', '.join(map(word_of, names))} of this object{why}; {end}"
    return ObjectError(ErrorClass.LOST_ATTRIBUTE, text)


def _case(name: str, attributes: Mapping[str, str]) -> tuple[str, str]:
    return name, attributes.get(name, "") if name == TIER else ""
