"""NequIP's own unit tests, on models with EFA.

Zero-initialised EFA passes all of them as they are. With random weights two are overridden, because they assert what EFA exists
to change: that distant atoms do not interact, and that an atom and its periodic image are the same to a model.

NequIP's periodic test structures are put in as if they were clusters: EFA's refusal of periodic structures, tested elsewhere,
is switched off here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from nequip.utils.unittests.model_tests import BaseEnergyModelTests
from nequip_support import randomize

from efa_addons.hosts.nequip import layer


def config(mode: str, **efa: Any) -> dict[str, Any]:
    return {
        "_target_": "efa_addons.hosts.nequip.NequIPEFAModel",
        "mode": mode,
        "efa": {
            "max_length": 100.0,
            "num_features_qk": 4,
            "num_features_v": 4,
            "max_degree_qk": None,
            "tolerance": 1e-8,
            **efa,
        },
        "seed": 123,
        "type_names": ["H", "C", "O"],
        "r_max": 4.0,
        "avg_num_neighbors": 20.0,
        "num_layers": 2,
        "l_max": 1,
        "num_features": 16,
        "radial_mlp_width": 8,
        "per_type_energy_shifts": {"H": 1.0, "C": 2.0, "O": 3.0},
        "per_type_energy_scales": 1.0,
    }


class _OnEFA(BaseEnergyModelTests):
    test_ase_compile = None  # minutes each: in TestCompiledEFA

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def as_clusters(cls):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layer, "refuse_what_efa_cannot_serve", lambda data: None)
            yield

    @pytest.fixture
    def strict_locality(self):
        return False

    @pytest.fixture(scope="class", params=["parallel", "sequential"])
    @classmethod
    def config(cls, request):
        return config(request.param)

    @pytest.fixture(scope="class")
    @classmethod
    def conffile(cls, workspace):
        """The tutorial, with data."""
        tutorial = Path(__file__).parents[3] / "configs" / "nequip" / "tutorial.yaml"
        path = workspace / "host_suite.yaml"
        path.write_text(tutorial.read_text().replace("data_file: train.xyz", f"data_file: {workspace / 'train.xyz'}"))
        return str(path)


class TestUntrainedEFA(_OnEFA):
    """As it is inserted: nothing may differ from NequIP."""


class TestTrainedEFA(_OnEFA):
    """With random weights, and the options that leave an isolated atom its energy."""

    @pytest.fixture(scope="class", params=["parallel", "sequential"])
    @classmethod
    def config(cls, request):
        return config(request.param, include_self=False, use_bias=False)

    @staticmethod
    def make_model(model_config, device):
        model = BaseEnergyModelTests.make_model(model_config, device)
        return randomize(model, 0.1).to(device)

    @pytest.mark.skip(reason="asserts that two far molecules do not interact: with EFA they do")
    def test_large_separation(self):
        raise NotImplementedError

    @pytest.mark.skip(reason="asserts that an atom may be exchanged for its periodic image: periodic structures are refused")
    def test_wrapped_unwrapped(self):
        raise NotImplementedError

    # Without biases the sequential form stays local for lonely pairs of atoms, and passes the next three as they are.

    def test_force_smoothness(self, model, device, pair_force, zero_prior_at_init):
        """Asserts that forces end at the cutoff: EFA's do not."""
        instance, config, _ = model
        if config["mode"] == "sequential":
            return super().test_force_smoothness(model, device, pair_force, zero_prior_at_init)
        r_max = self._r_max_from_model(instance)
        assert pair_force(0, 1, 1.1 * r_max, 1.5 * r_max).abs().max() > 0

    def test_partial_force_smoothness(self, model, device, pair_force, zero_prior_at_init):
        """Asserts that forces end at the cutoff: EFA's do not."""
        instance, config, _ = model
        if config["mode"] == "sequential":
            return super().test_partial_force_smoothness(model, device, pair_force, zero_prior_at_init)
        r_max = self._r_max_from_model(instance)
        assert pair_force(0, 1, 1.1 * r_max, 1.5 * r_max, partial=True)[0].abs().max() > 0

    def test_embedding_cutoff(self, model, device):
        _, config, _ = model
        if config["mode"] == "parallel":
            pytest.skip("asserts that an atom beyond the cutoff has no part in the energy: with EFA it has")
        super().test_embedding_cutoff(model, device)


@pytest.mark.slow
class TestCompiledEFA(TestTrainedEFA):
    """By the quadrature, which compiled models take: NequIP compares them with the package to 1e-12 in double precision."""

    test_ase_compile = BaseEnergyModelTests.test_ase_compile

    @pytest.fixture(scope="class")
    @classmethod
    def config(cls):
        return config("parallel", include_self=False, use_bias=False, method="quadrature")
