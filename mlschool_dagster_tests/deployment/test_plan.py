"""Plans and capabilities: what contradicts itself or does not fit is refused in one sentence."""

import subprocess
import sys
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlschool_dagster.deployment.plan import Capabilities, Plan
from mlschool_dagster.errors import UserError

numbers = st.integers(1, 30).map(str)
shares = st.floats(0.01, 1.0)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    primary, canary, shadow = draw(st.lists(numbers, min_size=3, max_size=3, unique=True))
    has_canary, has_shadow = draw(st.booleans()), draw(st.booleans())
    return Plan(
        primary=primary,
        canary=canary if has_canary else None,
        canary_share=draw(shares) if has_canary else 0.0,
        shadow=shadow if has_shadow else None,
        shadow_share=draw(shares) if has_shadow else 0.0,
        sampling_share=draw(shares),
    )


def able(**changes: object) -> Capabilities:
    return Capabilities(
        **{
            "canary": True,
            "shadow": True,
            "shadow_beside_canary": True,
            "deploy_timeout": timedelta(minutes=1),
            "refuses_reused_ids": True,
            "durable": True,
            **changes,
        }  # type: ignore[arg-type]
    )


@given(plans())
def test_a_plan_survives_being_kept(plan: Plan) -> None:
    again = Plan.from_dict(plan.to_dict())
    assert again == plan
    assert again.digest == plan.digest


@given(plans(), plans())
def test_plans_have_the_same_digest_if_they_are_equal(one: Plan, other: Plan) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_a_digest_is_the_same_in_every_process() -> None:
    code = (
        "from mlschool_dagster.deployment.plan import Plan; "
        "print(Plan(primary='1', canary='2', canary_share=1).digest)"
    )
    finished = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert finished.stdout.strip() == Plan(primary="1", canary="2", canary_share=1.0).digest


@pytest.mark.parametrize("role", ["canary", "shadow"])
@pytest.mark.parametrize("share", [-0.1, 0.0, 1.1, float("nan")])
def test_a_role_without_a_sensible_share_is_refused(role: str, share: float) -> None:
    with pytest.raises(UserError, match=f"{role} share"):
        Plan(**{"primary": "1", role: "2", f"{role}_share": share})  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_a_share_without_a_version_is_refused(role: str) -> None:
    with pytest.raises(UserError, match=f"{role} share"):
        Plan(**{"primary": "1", f"{role}_share": 0.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["canary", "shadow"])
def test_a_version_is_no_canary_or_shadow_of_itself(role: str) -> None:
    with pytest.raises(UserError, match=f"Version 1 cannot be the {role} of itself"):
        Plan(**{"primary": "1", role: "1", f"{role}_share": 0.5})  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [-0.1, 0.0, 1.1, float("nan")])
def test_a_sampling_share_without_sense_is_refused(share: float) -> None:
    with pytest.raises(UserError, match="sampling share"):
        Plan(primary="1", sampling_share=share)


@pytest.mark.parametrize("version", ["", "champion", "../1", "1.0", "²"])
def test_a_version_is_a_number(version: str) -> None:
    with pytest.raises(UserError, match="no version number"):
        Plan(primary=version)


def test_a_plan_names_each_version_once() -> None:
    plan = Plan(primary="1", canary="2", canary_share=0.5, shadow="2", shadow_share=1.0)
    assert plan.versions == ["1", "2"]


CANARY = Plan(primary="1", canary="2", canary_share=0.3)
SHADOW = Plan(primary="1", shadow="2", shadow_share=0.3)
BOTH = Plan(primary="1", canary="2", canary_share=0.3, shadow="3", shadow_share=0.3)


@pytest.mark.parametrize(
    ("plan", "capabilities", "refusal"),
    [
        (CANARY, able(canary=False), "has no canaries"),
        (SHADOW, able(shadow=False), "has no shadows"),
        (BOTH, able(shadow_beside_canary=False), "a canary and a shadow at once"),
        (CANARY, able(largest_canary_share=0.25), "from 0 to 0.25"),
        (SHADOW, able(largest_shadow_share=0.25), "from 0 to 0.25"),
        (SHADOW, able(smallest_shadow_share=1.0), "from 1 to 1"),
        (CANARY, able(share_step=0.25), "steps of 0.25; choose 0.25"),
        (Plan(primary="1", sampling_share=0.005), able(sampling_step=0.01), "choose 0.01"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused_in_a_sentence(
    plan: Plan, capabilities: Capabilities, refusal: str
) -> None:
    able().require(plan)
    with pytest.raises(UserError) as refused:
        capabilities.require(plan)
    assert refusal in str(refused.value)
    assert "\n" not in str(refused.value)


@given(st.integers(1, 100))
def test_every_whole_percentage_fits_steps_of_one_percent(percent: int) -> None:
    able(share_step=0.01, sampling_step=0.01).require(
        Plan(primary="1", canary="2", canary_share=percent / 100, sampling_share=percent / 100)
    )
