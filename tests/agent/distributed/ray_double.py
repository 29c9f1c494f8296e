"""A Ray of one process: actors are plain objects and a call is made when its reply is asked for.

It keeps Ray's promises that the driver relies on (calls of one caller to one actor are made in order, a reply can be
passed on before it is there, an actor that died answers every call with ActorDiedError), and lets a test kill an actor
at an exact moment, which no real process can be made to do. What only real processes show is in test_chaos.py.
"""

import copy
import types
from collections.abc import Callable, Sequence
from typing import Any


class RayError(Exception):
    """Base of what Ray itself raises."""


class RayActorError(RayError):
    """An actor is gone."""


class RayTaskError(RayError):
    """Code in a task raised `cause`."""

    def __init__(self, cause: BaseException) -> None:
        super().__init__(repr(cause))
        self.cause = cause


class Ref:
    """A reply, or one part of it."""

    def __init__(self, task: "Task", part: int | None) -> None:
        self.task, self.part = task, part


class Task:
    """A call, made at most once."""

    def __init__(self, actor: "Actor", method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self.actor, self.method, self.arguments, self.named = actor, method, arguments, named
        self.done = False
        self.value: Any = None
        self.failure: Exception | None = None

    def run(self) -> None:
        if self.done:
            return
        self.actor.run_until(self)

    def call(self) -> None:
        self.done = True
        if self.actor.dead:
            self.failure = RayActorError(f"{self.actor.kind} is dead")
            return
        try:
            arguments = [get(value) if isinstance(value, Ref) else value for value in self.arguments]
            instance = self.actor.instance()
            self.value = getattr(instance, self.method)(*arguments, **self.named)
        except Exception as error:  # noqa: BLE001 - as Ray does: whatever a task raises is its reply
            self.failure = error if isinstance(error, RayTaskError) else RayTaskError(error)


class Actor:
    """A handle, with the queue of calls behind it."""

    def __init__(self, world: "World", kind: type, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        self._world, self._kind, self._arguments, self._named = world, kind, arguments, named
        self.kind = kind.__name__
        self.dead = False
        self._made: Any = None
        self.queue: list[Task] = []

    def __deepcopy__(self, memory: dict[int, Any]) -> "Actor":
        return self

    def __getattr__(self, method: str) -> Any:
        if method.startswith("_"):
            raise AttributeError(method)
        return Method(self, method)

    def instance(self) -> Any:
        if self._made is None:
            arguments = [get(value) if isinstance(value, Ref) else value for value in self._arguments]
            self._made = self._kind(*arguments, **self._named)
        return self._made

    def run_until(self, task: Task) -> None:
        while not task.done:
            following = self.queue.pop(0)
            self._world.before(self, following)
            following.call()


class Method:
    """`actor.method`, to be called with remote()."""

    def __init__(self, actor: Actor, name: str, parts: int = 1) -> None:
        self._actor, self._name, self._parts = actor, name, parts

    def options(self, *, num_returns: int) -> "Method":
        return Method(self._actor, self._name, num_returns)

    def remote(self, *arguments: Any, **named: Any) -> Any:
        task = Task(self._actor, self._name, arguments, named)
        self._actor.queue.append(task)
        if self._parts == 1:
            return Ref(task, None)
        return [Ref(task, part) for part in range(self._parts)]


def get(ref: Any) -> Any:
    """A reply's value: a copy, as another process would have one."""
    if isinstance(ref, Sequence):
        return [get(part) for part in ref]
    ref.task.run()
    if ref.task.failure is not None:
        raise ref.task.failure
    value = ref.task.value if ref.part is None else ref.task.value[ref.part]
    return copy.deepcopy(value)


class World:
    """The module `ray`. before: called with (actor, task) when a task is about to be made; a test kills there."""

    def __init__(self) -> None:
        self.before: Callable[[Actor, Task], None] = lambda actor, task: None
        self.actors: list[Actor] = []

    def module(self) -> types.ModuleType:
        ray = types.ModuleType("ray")
        ray.exceptions = types.SimpleNamespace(  # type: ignore[attr-defined]
            RayError=RayError, RayActorError=RayActorError, RayTaskError=RayTaskError
        )
        ray.is_initialized = lambda: True  # type: ignore[attr-defined]
        ray.cluster_resources = lambda: {"CPU": 4.0}  # type: ignore[attr-defined]
        ray.get_runtime_context = lambda: types.SimpleNamespace(get_node_id=lambda: "here")  # type: ignore[attr-defined]
        ray.get, ray.put, ray.wait, ray.kill = get, self._put, self._wait, self._kill  # type: ignore[attr-defined]
        ray.remote = self._remote  # type: ignore[attr-defined]
        return ray

    def _put(self, value: Any) -> Ref:
        task = Task(Actor(self, object, (), {}), "", (), {})
        task.done, task.value = True, value
        return Ref(task, None)

    @staticmethod
    def _wait(refs: list[Ref], *, num_returns: int, timeout: float) -> tuple[list[Ref], list[Ref]]:
        refs[0].task.run()
        return refs[:1], refs[1:]

    @staticmethod
    def _kill(actor: Actor) -> None:
        actor.dead = True

    def _remote(self, **options: Any) -> Any:
        def decorate(kind: type) -> Any:
            def make(*arguments: Any, **named: Any) -> Actor:
                self.actors.append(Actor(self, kind, arguments, named))
                return self.actors[-1]

            return types.SimpleNamespace(remote=make)

        return decorate
