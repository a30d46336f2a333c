"""Every refusal says what was given and what is expected."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from efa_addons import EFABlock, EFAConfig, EFAError, EFAWarning, EuclideanFastAttention
from efa_addons.nn.checks import refuse_periodic


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 3}, "even number of features .* got 3; set num_features_qk"),
        ({"num_features_qk": 5}, "even number of features .* got 5"),
        ({"parametrized": False, "num_features": 5}, "got 5; give an even num_features, or parametrized=True"),
        ({"tolerance": 1.5}, "tolerance must be positive and below 1, the largest value of the kernel, got 1.5"),
        ({"tolerance": float("nan"), "method": "pairwise"}, "tolerance must be positive .* got nan"),
        ({"tensor_integration": True, "ti_degree_scaling_constants": (1.0, float("nan"))}, "must be finite, got .1.0, nan."),
        ({"parametrized": False, "num_features_qk": 4}, "num_features_qk=4 and num_features_v=None need parametrized=True"),
        ({"parametrized": False, "num_features_v": 4}, "num_features_v=4 need parametrized=True"),
        ({"max_degree_qk": 2}, "max_degree_qk=2 is impossible: the features reach degree 1; give 0 to 1"),
        ({"max_degree_v": -1}, "max_degree_v=-1 is impossible"),
        ({"activation": "shifted_soft_plus"}, "unknown activation 'shifted_soft_plus' .did you mean 'shifted_softplus'"),
        ({"method": "pairs"}, "unknown method 'pairs' .did you mean 'pairwise'.*; known: auto, pairwise, quadrature"),
        ({"method": "pairwise", "lebedev_num": 50}, "lebedev_num=50 asks for a grid and method='pairwise' uses none"),
        ({"lebedev_num": 51}, "no Lebedev grid has lebedev_num=51 points; use 50 or 74"),
        ({"lebedev_num": 1}, "no Lebedev grid has lebedev_num=1 points; use 6"),
        ({"lebedev_num": 0}, "no Lebedev grid has lebedev_num=0 points; use 6"),
        ({"max_degree": -1}, "max_degree must be 0 or more, got -1"),
        ({"num_features_v": 0}, "num_features_v must be 1 or more, got 0"),
        ({"tensor_integration": True, "ti_max_degree": -1}, "ti_max_degree must be 0 or more, got -1"),
        ({"tensor_integration": True, "ti_max_degree_sph": -1}, "ti_max_degree_sph must be 0 or more, got -1"),
        ({"max_frequency": float("inf"), "method": "pairwise"}, "max_frequency must be a positive number, got inf"),
        ({"max_frequency": 500.0}, "no Lebedev grid .* at max_frequency=500.000"),
        ({"max_frequency": 0.0}, "max_frequency must be a positive number, got 0.0"),
        ({"max_length": -1.0}, "max_length must be a positive number, got -1.0"),
        ({"max_length": "auto"}, "max_length must be a positive number, got 'auto'"),
        ({"normalization": "auto"}, "normalization must be a positive number, got 'auto'"),
        ({"ti_max_degree_sph": 1}, "ti_max_degree_sph=1 need tensor_integration=True"),
        ({"ti_max_degree": 1, "ti_include_pseudotensors": False}, "ti_max_degree=1, ti_include_pseudotensors=False need"),
        ({"ti_parametrize_coupling_paths": True}, "ti_parametrize_coupling_paths=True need tensor_integration=True"),
        ({"ti_degree_scaling_constants": (1.0,)}, "ti_degree_scaling_constants=.* need tensor_integration=True"),
        ({"tensor_integration": True, "ti_max_degree": 3}, "ti_max_degree=3 cannot be reached: .* gives at most 2"),
        (
            {"tensor_integration": True, "ti_degree_scaling_constants": (1.0, 2.0, 3.0)},
            "one constant for each degree 0 to 1 .* got 3",
        ),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else "",
)
def test_options_of_the_attention(options, message):
    with pytest.raises(EFAError, match=message):
        EuclideanFastAttention(**{"num_features": 4, "max_degree": 1, "max_length": 5.0, **options})


GOOD = {"inputs": torch.randn(3, 1, 4, 2), "positions": torch.randn(3, 3), "batch": torch.tensor([0, 0, 1]), "num_graphs": 2}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": torch.randn(3, 4, 2)}, r"inputs must have the shape \(atoms, 1, 4, 2\).* got \[3, 4, 2\]"),
        ({"inputs": torch.randn(3, 1, 1, 2)}, r"inputs must have the shape .* got \[3, 1, 1, 2\]"),
        ({"inputs": torch.randn(3, 2, 4, 2)}, r"inputs must have the shape .* got \[3, 2, 4, 2\]"),
        ({"inputs": torch.ones(3, 1, 4, 2).int()}, "must be real floating-point, got torch.int32 and torch.float32"),
        ({"positions": torch.randn(3, 2)}, r"positions must have the shape \(3, 3\) as inputs, got \[3, 2\]"),
        ({"positions": torch.randn(2, 3)}, r"positions must have the shape \(3, 3\) as inputs, got \[2, 3\]"),
        ({"positions": torch.ones(3, 3).long()}, "must be real floating-point, got torch.float32 and torch.int64"),
        ({"batch": torch.tensor([0, 0])}, r"batch must have the shape \(3,\) as inputs, got \[2\]"),
        ({"batch": torch.tensor([[0], [0], [1]])}, r"batch must have the shape \(3,\) as inputs, got \[3, 1\]"),
        ({"batch": torch.tensor([0, 0, 1]).int()}, r"int64 graph numbers, got torch.int32; use batch.long\(\)"),
        ({"batch": torch.tensor([0, 0, 2])}, "batch must hold graph numbers 0 to 1, got 0 to 2"),
        ({"batch": torch.tensor([-1, 0, 1])}, "batch must hold graph numbers 0 to 1, got -1 to 1"),
        ({"num_graphs": 0}, "num_graphs must be 1 or more, got 0"),
    ],
)
def test_tensors_into_the_attention(changes, message):
    module = EuclideanFastAttention(2, 1, max_length=5.0)
    module(**GOOD)
    with pytest.raises(EFAError, match=message):
        module(**{**GOOD, **changes})


def test_block():
    config = EFAConfig(max_length=5.0)
    with pytest.raises(EFAError, match="max_length=auto must be a number here: call EFAConfig.resolve"):
        EFABlock("4x0e", "4x0e", EFAConfig())
    with pytest.raises(EFAError, match="max_length=auto and normalization=auto must be numbers"):
        EFABlock("4x0e", "4x0e", EFAConfig(normalization="auto"))
    with pytest.raises(EFAError, match="normalization=auto must be a number"):
        EFABlock("4x0e", "4x0e", config.replace(normalization="auto"))
    with pytest.raises(EFAError, match=r"irreps_out must contain scalars \(0e\) for EFA to act on, got 4x1o"):
        EFABlock("4x0e", "4x1o", config)
    with pytest.raises(EFAError, match=r"features must have the shape \(atoms, 4\), got \[2, 5\]"):
        EFABlock("4x0e", "4x0e", config)(torch.randn(2, 5), torch.randn(2, 3))


def test_a_block_whose_queries_would_be_zero():
    with pytest.raises(EFAError, match="max_degree_qk=0 leaves nothing for q and k.* irreps_in=8x1o start at degree 1; give 1"):
        EFABlock("8x1o", "8x0e+8x1o", EFAConfig(max_length=5.0))
    block = EFABlock("8x1o", "8x0e+8x1o", EFAConfig(max_length=5.0, max_degree_qk=1))
    block.attention(torch.randn(3, *block.input_shape), torch.randn(3, 3)).sum().backward()
    assert block.attention.q.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("irreps", "options", "message"),
    [
        (
            "8x0o+8x1o",
            {"include_pseudotensors_qk": False},
            "max_degree_qk=0 with include_pseudotensors_qk=False leaves nothing for q",
        ),
        (
            "8x1e",
            {"include_pseudotensors_qk": False, "max_degree_qk": None},
            "have pseudotensors only .* include_pseudotensors_qk=True",
        ),
        ("8x1o", {"max_degree_qk": 1, "activation": "relu"}, "activation=relu closes all gates of q and k.* no scalars"),
        ("8x1o+0x0e", {"max_degree_qk": 1, "activation": "relu6"}, "activation=relu6 closes all gates"),
        (
            "8x1o",
            {"max_degree_qk": 1, "max_degree_v": 0, "use_bias": False},
            "max_degree_v=0 leaves nothing for v.* give 1 or more",
        ),
    ],
)
def test_blocks_that_would_attend_to_nothing(irreps, options, message):
    with pytest.raises(EFAError, match=message):
        EFABlock(irreps, "8x0e+8x1o", EFAConfig(max_length=5.0, **options))
    for name in ("include_pseudotensors_qk", "activation", "use_bias"):  # each of which is the way out
        options.pop(name, None)
    block = EFABlock(irreps, "8x0e+8x1o", EFAConfig(max_length=5.0, **options))
    with torch.no_grad():  # new biases are zeros
        for bias in (p for name, p in block.attention.named_parameters() if name.endswith("bias")):
            bias.fill_(0.1)
    block.attention(torch.randn(3, *block.input_shape), torch.randn(3, 3)).square().sum().backward()
    assert block.attention.q.weight.grad.abs().max() > 0


def test_degrees_of_a_coupling_that_were_not_asked_for_are_capped():
    config = EFAConfig(max_length=6.0, tensor_integration=True, max_degree_v=0, ti_max_degree_sph=1)
    blocks = [EFABlock("8x0e+8x1o+8x2e", "8x0e", config.replace(ti_max_degree=degree)) for degree in (None, 2)]
    assert [block.attention.output_type.max_degree for block in blocks] == [1, 1]


def test_a_default_device_for_a_while():
    """What is kept for later calls is on the device of the call."""
    from efa_addons.ops import bessel

    for kept in (bessel._taylor_terms, bessel._nodes_and_cosines):
        kept.cache_clear()
    module = EuclideanFastAttention(2, max_length=5.0, max_frequency=12.0, method="pairwise")
    for scale in (0.1, 3.0):  # power series, Chebyshev polynomials
        x, positions = torch.randn(3, *module.input_shape), scale * torch.randn(3, 3)
        squares = torch.linspace(0, 4, 3), (positions[:, 0] ** 2).clone()
        with torch.device("meta"):
            inside = bessel.kernel_values(0, *squares)
        assert torch.equal(inside, bessel.kernel_values(0, *squares)) and module(x, positions).isfinite().all()


def test_the_device_meta():
    with torch.device("meta"), pytest.raises(EFAError, match="cannot be built on the device 'meta'.* Build it on the CPU"):
        EFABlock("8x0e", "8x0e", EFAConfig(max_length=5.0))


def test_tensors_without_memory():
    """Shapes go through, and what is kept for later calls has values."""
    module = EuclideanFastAttention(2, 1, max_length=5.0, method="quadrature")
    refuse_periodic(torch.tensor([False]))
    with FakeTensorMode(allow_non_fake_inputs=True):
        x, positions = (torch.randn(3, *shape) for shape in (module.input_shape, [3]))
        refuse_periodic(torch.zeros(3, dtype=torch.bool))
        for given in ((), (torch.zeros(3, dtype=torch.long), 1)):
            assert module(x, positions, *given).shape == (3, *module.input_shape)
    with pytest.warns(EFAWarning, match="is 8.00 Å wide"):
        assert module(torch.randn(2, *module.input_shape), torch.tensor([[0.0, 0, 0], [0, 0, 8]])).isfinite().all()


class Part(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x, positions, batch):
        return self.module(x, positions, batch, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: EFABlock("4x0e+4x1o", "4x0e+4x1o", EFAConfig(max_length=5.0)),
        lambda: EuclideanFastAttention(4, 1, max_length=5.0),
    ],
)
class TestWhatIsGivenInACall:
    def arguments(self, module):
        x = torch.randn(3, 16) if isinstance(module, EFABlock) else torch.randn(3, *module.input_shape)
        return [x, torch.randn(3, 3), torch.tensor([0, 0, 1]), 2]

    @pytest.mark.parametrize("place", [0, 1, 2])
    def test_must_be_tensors(self, make, place):
        module = make()
        given = self.arguments(module)
        given[place] = given[place].numpy()
        with pytest.raises(EFAError, match="must be a tensor, got ndarray; use torch.as_tensor"):
            module(*given)

    @pytest.mark.parametrize("number", [2.0, True, "2"])
    def test_a_number_of_graphs_that_is_none(self, make, number):
        module = make()
        with pytest.raises(EFAError, match=f"num_graphs must be a whole number, got {number!r}"):
            module(*self.arguments(module)[:3], number)

    def test_features_of_another_precision(self, make):
        """Within autocast they may be."""
        module = make()
        x, *rest = self.arguments(module)
        for other in (torch.float64, torch.float16):
            with pytest.raises(EFAError, match=f"dtype of EFA's weights, torch.float32, got {other}"):
                module(x.to(other), *rest)
        with torch.autocast("cpu", torch.bfloat16):
            assert module(x.bfloat16(), *rest).isfinite().all()

    def test_no_trace(self, make):
        """Right for the sizes of its graphs alone; of a script it may be a part."""
        module = make()
        given = self.arguments(module)
        with pytest.raises(EFAError, match="torch.jit.trace records EFA for the sizes"):
            torch.jit.trace(lambda *tensors: module(*tensors, 2), tuple(given[:3]), check_trace=False)
        part = Part(torch.jit.script(module))
        traced = torch.jit.trace(part, tuple(given[:3]), check_trace=False)
        given[2] = torch.tensor([0, 1, 1])
        assert torch.allclose(traced(*given[:3]), module(*given), atol=1e-6)


def test_a_block_wants_a_configuration():
    with pytest.raises(EFAError, match="config must be an EFAConfig, got dict; of a dictionary: EFAConfig.from_dict"):
        EFABlock("4x0e", "4x0e", EFAConfig(max_length=5.0).to_dict())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_features": 8.0}, "num_features must be a whole number, got 8.0"),
        ({"num_features_qk": 4.0}, "num_features_qk must be a whole number, got 4.0"),
        ({"max_degree": 1.5}, "max_degree must be a whole number, got 1.5"),
        ({"max_length": None}, "max_length must be a positive number, got None"),
        ({"max_frequency": True}, "max_frequency must be a positive number, got True"),
        ({"tolerance": "a"}, "tolerance must be positive and below 1, .* got 'a'"),
        ({"tensor_integration": True, "ti_max_degree_sph": 12}, "ti_max_degree_sph must be 11 or less, got 12"),
    ],
)
def test_types_of_options(options, message):
    given = {"num_features": 8, "max_length": 5.0, **options}
    with pytest.raises(EFAError, match=message):
        EuclideanFastAttention(given.pop("num_features"), given.pop("max_degree", 0), **given)
