"""The layer that all methods share: it owns the gate parameters and one plain child ``bn``, and joins the steps."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import fields
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, nn

from calibnorm import _checks
from calibnorm.methods import Method, build, not_an_option
from calibnorm.nn import child as children
from calibnorm.nn import evaluation, hooks, loading, ordinary, running_statistics
from calibnorm.nn.apply import add_and_rectify, apply
from calibnorm.nn.arguments import SHARED, LayerArguments, arguments_of, can_stand_over, description, takes
from calibnorm.nn.batchnorm_owner import BatchNormOwner
from calibnorm.nn.plain_modules import is_identity, is_relu
from calibnorm.ops import Statistics
from calibnorm.ops.inputs import transformed

BATCHNORMS: dict[int, type[nn.BatchNorm1d] | type[nn.BatchNorm2d] | type[nn.BatchNorm3d]] = {
    1: nn.BatchNorm1d,
    2: nn.BatchNorm2d,
    3: nn.BatchNorm3d,
}


class CalibratedNorm(BatchNormOwner):
    """Base of every layer. Subclasses say their method and their number of spatial dimensions.

    gamma, beta and the running statistics belong to the child ``bn``, a plain ``nn.BatchNorm1d/2d/3d``, so that
    whatever other software does to BatchNorm layers (synchronize, freeze, reset, replace) reaches them; the layer
    follows the child it finds at each forward. The gates belong to the layer. The child itself is never called; its
    hooks run all the same, around what the layer computes in its place. They see the input whose statistics the child
    keeps, for RBN with its centre calibrated, and the layer's normalized output, before residual and activation.

    Activation checkpointing runs a forward twice, and the statistics move twice, as torch's BatchNorm's do. A method
    that reads them in training (Batch Renorm) reads in the second what it read in the first.
    """

    dims: ClassVar[int]
    method_type: ClassVar[type[Method]]
    qconfig = None
    """Eager quantization looks here, and leaves a layer and its child in floating point."""

    act: nn.Module | str | None
    drop: nn.Module | None

    _gamma_unseen = False
    """Whether gamma has just been given another start than 1, and no forward has looked whether it is still there."""

    def __init__(self, num_features: int, *of_batchnorm: Any, **options: Any) -> None:
        own = {name: value for name, value in options.items() if name not in SHARED}
        given = LayerArguments(num_features, *of_batchnorm, **{k: v for k, v in options.items() if k in SHARED})
        method = self._method(own)
        channels, affine, track = given.num_features, given.affine, given.track_running_stats
        if channels % method.divisor:
            raise ValueError(
                f"{channels} channels are no multiple of {method.divisor}, which {method} needs; choose a divisor "
                f"of {channels}, or leave the option out"
            )
        if not method.normalizes:
            if given.noise is not None:
                raise ValueError(
                    f"noise={given.noise} attacks a standardized feature, and {method} standardizes nothing"
                )
            affine = track = False
        if not affine and method.gated == ("bias",):
            raise ValueError(f"{method} gates beta, which affine=False does not have; use affine=True")
        if not affine and method.initial_weight != 1.0:
            raise ValueError(f"{method} needs gamma, which affine=False does not have; use affine=True")
        super().__init__()
        self.method = method
        self.noise, self.noise_in, self.act = given.noise, given.noise_in, given.act
        self.drop = None
        self.frozen = False
        self.compensated = False
        place: dict[str, Any] = {"device": given.device, "dtype": given.dtype}
        self.bn = BATCHNORMS[self.dims](channels, given.eps, given.momentum, affine, track, **place)
        self._start_gamma()
        self._create_gates(channels, **place)

    def _method(self, options: Mapping[str, Any]) -> Method:
        """Return the method with its options; refuse one that the method does not have."""
        kind = self.method_type
        own = [*(option.name for option in fields(kind)), *["over"] * can_stand_over(kind)]
        for name in options:
            if name not in own:
                if name == "over":
                    build(kind, **options)  # says why the two do not compose, where they do not
                known = [*own, "noise", "noise_in", "act"]
                raise TypeError(f"{type(self).__name__}: {not_an_option(name, kind.name, known)}")
        return build(kind, **options)

    def _start_gamma(self) -> None:
        if self.weight is not None and self.method.initial_weight != 1.0:
            nn.init.constant_(self.weight, self.method.initial_weight)
            self._gamma_unseen = True

    def _create_gates(self, channels: int, device: torch.device | str | None, dtype: torch.dtype | None) -> None:
        specs = self.method.parameters(channels)
        for name, spec in specs.items():
            self.register_parameter(name, nn.Parameter(spec.create(device, dtype)))
        # Kept, because a forward reads them, and making the specs anew would take 6 us of it.
        self._gate_channels, self._gate_shapes = channels, {name: spec.shape for name, spec in specs.items()}
        self._extra = tuple(self.method.extra_statistics(channels)) if self.track_running_stats else ()
        for name in self._extra:
            size = self.method.extra_statistics(channels)[name]
            self.register_buffer(f"{name}_mean", torch.zeros(size, device=device, dtype=dtype))
            self.register_buffer(f"{name}_var", torch.ones(size, device=device, dtype=dtype))

    def __init_subclass__(cls, dims: int | None = None, **kwargs: Any) -> None:
        """Complete a class: its arguments, where it declares none, and, where it says its rank, its description."""
        super().__init_subclass__(**kwargs)
        if cls.__init__ is CalibratedNorm.__init__ and hasattr(cls, "method_type"):

            def init(self: CalibratedNorm, *args: Any, **options: Any) -> None:
                CalibratedNorm.__init__(self, *args, **options)

            cls.__init__ = takes(arguments_of(cls.method_type))(init)  # type: ignore[assignment]
        if dims is not None:
            cls.dims = dims
            if cls.__doc__ and (text := getattr(cls.__init__, "text", None)):  # python -OO leaves none
                cls.__doc__ = description(text, cls.__doc__, dims, cls.method_type().batch_statistics)

    @classmethod
    def fewest_channels(cls, options: Mapping[str, Any]) -> int:
        """Return the least number of channels that a layer with these options can have."""
        own = {"over", *(field.name for field in fields(cls.method_type))}
        return build(cls.method_type, **{name: value for name, value in options.items() if name in own}).divisor

    @classmethod
    def around(cls, child: nn.Module, **options: Any) -> Self:
        """Return a layer that owns an existing BatchNorm: its parameters, statistics, mode, device and dtype.

        Args:
            child: A BatchNorm, SyncBatchNorm or FrozenBatchNorm2d; the instance itself becomes the child.
            options: The method's options, ``noise``, ``noise_in`` and ``act``.

        Raises:
            TypeError: The child is of a class that a layer cannot follow, such as a LazyBatchNorm2d without a size.
        """
        if not children.accepts(child):
            raise TypeError(
                f"{cls.__name__}.around: {type(child).__name__} is no BatchNorm that a layer can follow; give it a "
                "torch BatchNorm, SyncBatchNorm or FrozenBatchNorm2d (a lazy one after its first forward)"
            )
        tensors = [t for t in (*child.parameters(recurse=False), *child.buffers(recurse=False))]
        floats = [t for t in tensors if t.is_floating_point()]
        like = floats[0] if floats else torch.empty(0)
        affine = getattr(child, "weight", None) is not None
        layer = cls(children.num_features(child), affine=affine, device=like.device, dtype=like.dtype, **options)
        if not layer.method.normalizes:
            raise ValueError(f"{cls.__name__}.around: {layer.method} normalizes nothing and can own no BatchNorm")
        layer.bn = child
        layer.training = child.training
        return layer

    def gates(self) -> dict[str, nn.Parameter]:
        """Return the method's learnable tensors by name."""
        held: dict[str, Any] = self._parameters  # a tenth of the time of getattr; a parametrized gate is not there
        return {name: held[name] if name in held else getattr(self, name) for name in self._gate_shapes}

    def _checked_gates(self, where: str) -> dict[str, nn.Parameter]:
        """Return the gates; refuse one of another shape, which would be broadcast, or read past its end."""
        gates, shapes, channels, remedy = self.gates(), self._gate_shapes, self.num_features, ""
        if channels != self._gate_channels:  # the child was replaced, and perhaps the gates: a pruned network
            remedy = (
                f": its child `bn` has {channels} channels now, and it was made with {self._gate_channels}. What mixes "
                "channels cannot be cut by a pruning tool; prune after cn.revert(model, lossy=True), and convert again"
            )
            shapes = {name: spec.shape for name, spec in self.method.parameters(channels).items()}
        if not _checks.sizes_known():
            return gates
        for name, gate in gates.items():
            if gate.shape != shapes[name]:
                raise ValueError(f"{where}: {name} has shape {tuple(gate.shape)} instead of {shapes[name]}{remedy}")
        return gates

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set gamma, beta, the gates and the running statistics to their initial values.

        A layer that was converted with ``preserve=True`` stays so: gamma and beta again take back the initial gate. A
        loop over ``modules()`` that resets the child after the layer loses that, and a forward then warns.
        """
        self.bn.reset_parameters()  # type: ignore[operator]
        self._start_gamma()
        self._reset_extra()
        specs = self.method.parameters(self.num_features)
        for name, gate in self.gates().items():
            specs[name].reset(gate)
        if self.compensated:
            initial = self.method.initial_gate(self.num_features)
            assert initial is not None
            for tensor in (getattr(self, name) for name in self.method.gated):
                if tensor is not None:
                    tensor.div_(initial.to(tensor))
            self._gamma_unseen = True

    def _look_at_gamma(self, where: str) -> None:
        """Warn, once, where gamma is 1 again before the first forward: a loop has reset the child after the layer."""
        self._gamma_unseen = False
        gamma = self.weight if "weight" in self.method.gated or self.method.initial_weight != 1.0 else None
        if gamma is not None and not gamma.is_meta and bool((gamma == 1.0).all()):
            what = "preserve=True" if self.compensated else f"gamma_init={self.method.initial_weight}"
            warnings.warn(
                f"{where}: something has set gamma back to 1, as loops over modules() that initialize BatchNorms do, "
                f"and {what} is lost; call reset_parameters() of this layer after such a loop, or cn.convert after it",
                stacklevel=4,
            )

    def forward(self, input: Tensor, residual: Tensor | None = None, *, relu: bool = False) -> Tensor:
        """Normalize ``input``; add ``residual``, if any, and apply the activation, if the layer has one.

        Args:
            input: (N, C, *spatial), floating point.
            residual: Of the input's shape, dtype and device; nothing is promoted, under autocast neither.
            relu: Rectify this call's result, as ``act="relu"`` does in every call.

        Returns:
            A tensor of the input's shape, dtype and layout.

        Raises:
            TypeError: The input is no floating point tensor, or the child ``bn`` is of an unknown class.
            ValueError: The input's rank or channel count is wrong, the residual does not match it, a tensor of the
                layer has another shape, or training sees one value per channel.
        """
        if isinstance(input, torch.fx.Proxy):  # type: ignore[unreachable]
            return self._as_one_node(input, residual, relu)  # type: ignore[unreachable]
        at_once, rectifies = self._what_follows()
        if at_once:
            return self._whole(input, residual, relu or rectifies)
        if residual is not None:  # here, not where it is added: by then the running statistics have moved
            children.check(self._modules["bn"], input, type(self).__name__)
            self._check(input, residual)
        y = self._drop_and_act(self._whole(input), residual)
        return torch.relu(y) if relu else y

    def _check(self, x: Tensor, residual: Tensor | None) -> None:
        """Refuse an input, or a residual, that does not belong to this layer."""
        where, child = type(self).__name__, self._modules["bn"]
        ranks = None if isinstance(child, nn.SyncBatchNorm) else self._ranks
        _checks.features(x, ranks, children.num_features(child), where)
        if residual is not None:
            _checks.residual(residual, x, where)

    def _what_follows(self) -> tuple[bool, bool]:
        """Return whether the passes can do all that follows the normalization, and whether that rectifies."""
        modules = self._modules  # nn.Module's own way to a child takes 0.7 us, and is not to be taken for a default
        act = modules["act"] if "act" in modules else self.act  # noqa: SIM401
        drop = modules["drop"] if "drop" in modules else self.drop  # noqa: SIM401
        if drop is not None and not is_identity(drop):
            return False, False
        if act is None or act == "relu":
            return True, act is not None
        rectifies = is_relu(act)
        return rectifies or is_identity(act), rectifies

    def _whole(self, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
        """Return x normalized, with the residual added and rectified, where asked."""
        y = evaluation.normalized(self, x, residual, relu)
        if y is None:
            y = ordinary.normalized(self, x, residual, relu)
        if y is not None:
            return y
        where, child = type(self).__name__, self._modules["bn"]
        assert child is not None
        alone = not (hooks.has_hooks(child) or children.is_split(child))
        state = children.read(child, where) if alone else None
        self._check(x, residual)
        if state is None:
            return add_and_rectify(self._in_place_of(child, x, where), residual, relu)
        return self._normalize(x, state, where, residual, relu)  # on the way of the passes

    def _in_place_of(self, child: nn.Module, x: Tensor, where: str) -> Tensor:
        """Return what the layer computes where the child would be called, with the child's hooks run around it."""

        def compute(x: Tensor) -> Tensor:
            parts = children.parts(child)
            states = [children.read(part, where) for part in parts]
            if x.shape[0] % len(parts):
                raise ValueError(
                    f"{where}: a batch of {x.shape[0]} cannot be split evenly among the {len(parts)} parts of its "
                    "child `bn` (timm's SplitBatchNorm2d); use a multiple"
                )
            shares = torch.split(x, x.shape[0] // len(parts)) if len(parts) > 1 else (x,)
            first = self._normalize(shares[0], states[0], where)
            others = zip(parts[1:], shares[1:], strict=True)
            return torch.cat([first, *(self._in_place_of(part, share, where) for part, share in others)])

        if not hooks.has_hooks(child):
            return compute(x)
        children.check(child, x, where)  # before any hook runs
        seen = x
        if self.method.enters_statistics:
            seen = running_statistics.subject(self.method, x, self._checked_gates(where))
        return hooks.call(child, x, compute, seen, where)

    def _normalize(
        self,
        x: Tensor,
        state: children.ChildState,
        where: str,
        residual: Tensor | None = None,
        relu: bool = False,
    ) -> Tensor:
        children.refuse_shards(state.weight, state.bias, x, where)
        if self._gamma_unseen and not transformed(x):
            self._look_at_gamma(where)
        use_batch = state.use_batch and not (self.frozen and state.running_mean is not None)
        update = state.update and use_batch
        return apply(
            x,
            self.method,
            {"weight": state.weight, "bias": state.bias, **self._checked_gates(where)},
            running_mean=state.running_mean,
            running_var=state.running_var,
            use_batch=use_batch,
            update=update,
            momentum=children.weight_of_batch(state) if update else 0.0,
            eps=state.eps,
            noise=self.noise if self.noise_in == "always" or self.training else None,
            where=where,
            residual=residual,
            relu=relu,
            num_batches_tracked=state.num_batches_tracked,
            extra=self._extra_statistics() if self._extra else (),
            group=state.group,
        )

    def _extra_statistics(self) -> tuple[Statistics, ...]:
        return tuple((self.get_buffer(f"{name}_mean"), self.get_buffer(f"{name}_var")) for name in self._extra)

    def _reset_extra(self) -> None:
        for mean, var in self._extra_statistics():
            mean.zero_()
            var.fill_(1.0)

    def _drop_and_act(self, y: Tensor, residual: Tensor | None) -> Tensor:
        if residual is not None:
            y = y + residual
        if self.drop is not None:
            y = self.drop(y)
        if self.act == "relu":
            return torch.relu(y)
        return self.act(y) if isinstance(self.act, nn.Module) else y

    @property
    def _ranks(self) -> tuple[int, ...]:
        return (2, 3) if self.dims == 1 else (self.dims + 2,)

    def _as_one_node(self, input: torch.fx.Proxy, residual: Any, relu: bool) -> Any:
        """Stay one node in a torch.fx graph, as torch's own layers do, so that fusers see a layer they do not know."""
        args = (input,) if residual is None else (input, residual)
        options = {"relu": True} if relu else {}
        return input.tracer.create_proxy("call_module", input.tracer.path_of_module(self), args, options)  # type: ignore[attr-defined]

    def reset_running_stats(self) -> None:
        """Set the child's running statistics to mean 0, variance 1 and no batches."""
        self.bn.reset_running_stats()  # type: ignore[operator]
        self._reset_extra()

    def options(self) -> dict[str, Any]:
        """Return the options that differ from their defaults, as the constructor takes them."""
        options: dict[str, Any] = dict(self.method.options())
        if self.noise is not None:
            options["noise"] = self.noise
            if self.noise_in != "always":
                options["noise_in"] = self.noise_in
        if isinstance(self.act, str):
            options["act"] = self.act
        return options

    def extra_repr(self) -> str:
        """Return the channel count and the options that differ from their defaults."""
        return ", ".join([str(self.num_features), *(f"{name}={value!r}" for name, value in self.options().items())])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._gamma_unseen = False
        loading.adapt(state_dict, prefix, self.method, self.bn, self.compensated, self._extra)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy or a pickle holds: all but what is prepared for tensors at their places in memory."""
        state = self.__dict__.copy()  # at once: another thread may be running the layer
        state.pop("_prepared", None)
        return state

    def __prepare_scriptable__(self) -> NoReturn:
        raise TypeError(
            f"{type(self).__name__} cannot be compiled by torch.jit.script; use torch.export, torch.jit.trace or "
            "torch.compile"
        )
