"""LiteLLM's model groups become models: ranks, shares, fallbacks, aliases."""

from typing import Any

import pytest

from gateway.cli.import_litellm import verify
from gateway.config.litellm import translate
from tests.support.litellm import deployed, imported, noted, targets


def test_deployments_of_one_name_are_targets_in_their_order() -> None:
    found = deployed(
        {"model": "groq/a", "order": 2},
        {"model": "openai/b", "order": 1},
        {"model": "xai/c"},
        {"model": "anthropic/d", "order": "1"},
    )
    assert targets(found) == [
        {"provider": "openai", "model": "b"},
        {"provider": "anthropic", "model": "d"},
        {"provider": "groq", "model": "a", "priority": 2},
        {"provider": "xai", "model": "c", "priority": 3},
    ]
    assert found.config["models"]["m"]["strategy"] == "weighted"


@pytest.mark.parametrize(
    ("shares", "weights"),
    [
        (({"weight": 2}, {"weight": 8}), [(1, 1), (1, 4)]),
        (({"weight": 3}, {"weight": 0}), [(1, 1), (2, 1)]),  # stands by
        (({"weight": 3}, {}), [(1, 1), (2, 1)]),
        (({}, {"weight": 3}), [(1, 1), (1, 1)]),  # LiteLLM goes by the first
        (({"rpm": 900}, {"rpm": 300}), [(1, 3), (1, 1)]),
        (({"rpm": 1, "weight": 1}, {"rpm": 300, "weight": 1}), [(1, 1), (1, 1)]),
        (({"tpm": 100}, {"tpm": "250"}), [(1, 2), (1, 5)]),
        (({"weight": 0}, {"weight": 0}), [(1, 1), (1, 1)]),
        (  # of each order by its own first
            ({"order": 2, "weight": 3}, {"order": 1}, {"order": 2, "weight": 1}),
            [(1, 1), (2, 3), (2, 1)],
        ),
    ],
)
def test_requests_are_shared_by_weight_or_by_limits(
    shares: tuple[dict[str, Any], ...], weights: list[tuple[int, int]]
) -> None:
    models = ("openai/x", "groq/x", "xai/x")
    deployments = [{"model": m, **share} for m, share in zip(models, shares, strict=False)]
    found = targets(deployed(*deployments))
    assert [(one.get("priority", 1), one.get("weight", 1)) for one in found] == weights


@pytest.mark.parametrize(
    ("wanted", "strategy"),
    [
        ("simple-shuffle", "weighted"),
        ("least-busy", "least-busy"),
        ("latency-based-routing", "latency"),
        ("cost-based-routing", "cost"),
        ("usage-based-routing-v2", "least-busy"),
        ("lar1", "weighted"),
    ],
)
def test_a_routing_strategy_is_one_of_ours(wanted: str, strategy: str) -> None:
    deployments = ({"model": "openai/x", "rpm": 5}, {"model": "groq/x", "rpm": 9})
    found = deployed(*deployments, router_settings={"routing_strategy": wanted})
    assert found.config["models"]["m"]["strategy"] == strategy
    shared = [one.get("weight", 1) for one in targets(found)]
    assert shared == ([5, 9] if strategy == "weighted" else [1, 1])
    said = noted(found, "router_settings.routing_strategy")
    assert bool(said) == (wanted in ("usage-based-routing-v2", "lar1"))
    alone = deployed(deployments[0], router_settings={"routing_strategy": wanted})
    assert "strategy" not in alone.config["models"]["m"]


def test_keys_of_one_provider_take_turns() -> None:
    keys = [{"model": "openai/x", "api_key": f"os.environ/K{i}"} for i in range(3)]
    found = deployed(*keys, {**keys[0], "order": None})
    assert found.config["providers"]["openai"]["api_keys"] == [
        {"key": "env:K0", "weight": 2},
        {"key": "env:K1", "weight": 1},
        {"key": "env:K2", "weight": 1},
    ]
    assert targets(found) == [{"provider": "openai", "model": "x"}]
    assert "asked once" in noted(found, "model_list[3]")
    even = deployed(*keys)
    assert even.config["providers"]["openai"]["api_keys"] == ["env:K0", "env:K1", "env:K2"]
    assert not [note for note in even.notes if note.field.startswith("model_list")]


def test_what_fits_no_provider_may_be_dropped() -> None:
    plain, drops = {"model": "openai/x"}, {"model": "groq/x", "drop_params": True}
    everywhere = deployed(plain, litellm_settings={"drop_params": True}).config
    assert everywhere["unsupported"] == "drop"
    assert "unsupported" not in everywhere["providers"]["openai"]
    refuses = deployed({**plain, "drop_params": False}, litellm_settings={"drop_params": "true"})
    assert refuses.config["providers"]["openai"]["unsupported"] == "refuse"
    mixed = deployed(plain, drops, {**plain, "drop_params": True}).config
    assert {name: one.get("unsupported") for name, one in mixed["providers"].items()} == {
        "openai": None,
        "groq": "drop",
        "openai-drop": "drop",
    }


def test_defaults_of_requests_are_noted() -> None:
    params = {"temperature": 0.5, "reasoning_effort": "low", "itpm": 5, "tag_regex": ["a"]}
    found = deployed({"model": "openai/x", "max_tokens": 500, "num_retries": 2, **params})
    place = "model_list[0].litellm_params."
    for name in (*params, "num_retries"):
        assert "not carried over" in noted(found, place + name)
    assert found.config["models"]["m"]["max_output_tokens"] == 500
    assert "max_output_tokens" in noted(found, f"{place}max_tokens")
    beside = translate({"model_list": [{"model_name": "m", "rpm": 5, "huh": 1}]})
    assert len(beside.notes) == 2  # of what is left out, that alone is said


def test_limits_and_tags_of_a_deployment_are_its_targets() -> None:
    found = deployed(
        {
            "model": "openai/x",
            "rpm": 5,
            "tpm": "6",
            "max_parallel_requests": 7,
            "tags": ["eu", "a b", "eu", 5],
        },
        {"model": "groq/x", "rpm": 0, "tags": "fast"},
        router_settings={"enable_tag_filtering": True, "routing_strategy": "least-busy"},
    )
    assert targets(found) == [
        {"provider": "openai", "model": "x", "rpm": 5, "tpm": 6, "concurrency": 7, "tags": ["eu"]},
        {"provider": "groq", "model": "x", "tags": ["fast"]},
    ]
    place = "model_list[0].litellm_params."
    for name, ours in (("rpm", "rpm"), ("tpm", "tpm"), ("max_parallel_requests", "concurrency")):
        assert f"carried over as the target's {ours}" in noted(found, place + name)
    assert "x-sluice-tags" in noted(found, f"{place}tags")
    assert "one of them is not" in noted(found, f"{place}tags")
    assert "from 1" in noted(found, "model_list[1].litellm_params.rpm")
    assert "x-sluice-tags" in noted(found, "router_settings.enable_tag_filtering")


def test_limits_of_one_providers_keys_are_added() -> None:
    one: dict[str, Any] = {"model": "openai/x", "weight": 1}
    keys = [{**one, "api_key": f"os.environ/K{i}", "rpm": 10 * i} for i in (1, 2)]
    (target,) = targets(found := deployed(*keys))
    assert target["rpm"] == 30
    for i in range(2):
        said = noted(found, f"model_list[{i}].litellm_params.rpm")
        assert said.startswith("carried over")
        assert "the sum" in said
    (target,) = targets(found := deployed(*keys, {**one, "api_key": "os.environ/K"}))
    assert "rpm" not in target
    for i in range(2):
        said = noted(found, f"model_list[{i}].litellm_params.rpm")
        assert said.startswith("not carried over: its provider has keys without one")
    tagged = deployed(keys[0], {**keys[1], "tags": ["a"]})
    assert [one.get("tags") for one in targets(tagged)] == [None, ["a"]]


@pytest.mark.parametrize("share", [{"weight": 0}, {}])
def test_a_key_without_a_share_stands_by(share: dict[str, int]) -> None:
    keys = [{"model": "openai/x", "api_key": f"os.environ/K{i}"} for i in range(3)]
    found = deployed({**keys[0], "weight": 5}, {**keys[1], **share}, {**keys[2], "weight": 10})
    assert targets(found) == [
        {"provider": "openai", "model": "x"},
        {"provider": "openai-k1", "model": "x", "priority": 2},
    ]
    assert found.config["providers"] == {
        "openai": {
            "kind": "openai",
            "api_keys": [{"key": "env:K0", "weight": 1}, {"key": "env:K2", "weight": 2}],
        },
        "openai-k1": {"kind": "openai", "api_key": "env:K1"},
    }


def test_a_key_that_has_a_share_elsewhere_does_not_stand_by() -> None:
    key = {"model": "openai/x", "api_key": "os.environ/K"}
    assert targets(deployed({**key, "weight": 5}, {**key, "weight": 0})) == [
        {"provider": "openai", "model": "x"}
    ]


def test_the_longest_answer_is_that_of_a_models_first_deployment() -> None:
    found = deployed(
        {"model": "openai/x", "max_tokens": 100},
        {"model": "groq/x", "max_completion_tokens": 100},
        {"model": "xai/x", "max_tokens": 200},
    )
    assert found.config["models"]["m"]["max_output_tokens"] == 100
    names = ("max_tokens", "max_completion_tokens", "max_tokens")
    said = [noted(found, f"model_list[{i}].litellm_params.{n}") for i, n in enumerate(names)]
    assert [one.split(":")[0] for one in said] == [
        *["carried over as max_output_tokens"] * 2,
        "not carried over",
    ]


def test_a_deployment_gets_the_prompts_that_it_takes() -> None:
    def sizes(*each: int | None, on: bool = True) -> list[Any]:
        source = {
            "model_list": [
                {
                    "model_name": "m",
                    "litellm_params": {"model": f"openai/x{i}"},
                    "model_info": {"max_input_tokens": size},
                }
                for i, size in enumerate(each)
            ],
            "router_settings": {"enable_pre_call_checks": on},
        }
        found = translate(source)
        verify(found.config)
        return [one.get("when") for one in targets(found)]

    assert sizes(8000, 128_000) == [{"max_tokens": 8000}, None]
    assert sizes(8000, None) == [{"max_tokens": 8000}, None]
    assert sizes(8000) == sizes(None) == [None]
    assert sizes(8000, 9000, on=False) == [None, None]


def test_other_models_stand_in_where_a_provider_refuses_a_prompt() -> None:
    found = imported("""
        model_list:
          - {model_name: a, litellm_params: {model: openai/a}}
          - {model_name: b, litellm_params: {model: groq/b}, model_info: {id: the-b}}
          - {model_name: "xai/*", litellm_params: {model: "xai/*"}}
        router_settings:
          model_group_alias: {also: a}
          content_policy_fallbacks: [{a: [b, the-b, nobody, a]}, {missing: [a]}]
        litellm_settings:
          context_window_fallbacks: [{a: [xai/grok-4, also]}, {xai/grok-3: [b]}, {"*": [a]}]
          content_policy_fallbacks: [{b: [a]}]
        """)
    models = found.config["models"]
    assert {name: model.get("fallbacks") for name, model in models.items()} == {
        "a": {"context_window": ["xai/grok-4"], "content_policy": ["b"]},
        "b": {"context_window": ["a"]},
        "also": {"context_window": ["xai/grok-4"], "content_policy": ["b"]},
        "xai/grok-3": {"context_window": ["b"]},
    }
    place = "router_settings.content_policy_fallbacks"
    assert "a deployment's id" in noted(found, f"{place}[0].a[1]")
    assert "no model" in noted(found, f"{place}[0].a[2]")
    assert "no model" in noted(found, f"{place}[1].missing[0]")
    assert "is above it" in noted(found, "litellm_settings.content_policy_fallbacks")


def test_fallbacks_come_behind_a_models_own_targets() -> None:
    found = imported("""
        model_list:
          - {model_name: a, litellm_params: {model: openai/a, order: 1}}
          - {model_name: a, litellm_params: {model: azure/a, order: 2}}
          - {model_name: b, litellm_params: {model: groq/b}, model_info: {id: the-b}}
          - {model_name: b, litellm_params: {model: xai/b, order: 1}}
          - {model_name: c, litellm_params: {model: openai/c}}
          - {model_name: "openai/*", litellm_params: {model: "openai/*"}}
        router_settings:
          fallbacks:
            - a: [b, a, openai/gpt-5, nobody]
            - {"openai/o3": [c]}
            - b: [{model: c, messages: []}, 5]
            - missing: [a]
            - 7
          default_fallbacks: [the-b]
          context_window_fallbacks: [{a: [b]}]
          model_group_alias: {also: c, old: {model: a, hidden: true}, lost: nobody, many: [a, b]}
        litellm_settings:
          fallbacks: [{c: [a]}]
        """)

    def reached(name: str) -> list[tuple[str, str, int]]:
        return [
            (t["provider"], t.get("model", name), t.get("priority", 1))
            for t in targets(found, name)
        ]

    own = [("openai", "a", 1), ("azure", "a", 2)]
    behind = [("xai", "b", 3), ("groq", "b", 4), ("openai", "c", 5), ("openai", "gpt-5", 6)]
    assert reached("a") == own + behind
    assert reached("old") == own + behind
    assert reached("b") == [("xai", "b", 1), ("groq", "b", 2), ("openai", "c", 3)]
    assert reached("c") == [("openai", "c", 1), ("groq", "b", 2)]
    assert reached("also") == [("openai", "c", 1), ("groq", "b", 2)]
    assert reached("openai/o3") == [("openai", "o3", 1), ("openai", "c", 2), ("groq", "b", 3)]
    place = "router_settings."
    assert "no model" in noted(found, f"{place}fallbacks[0].a[3]")
    assert "only the model" in noted(found, f"{place}fallbacks[2].b[0]")
    assert "not the name" in noted(found, f"{place}fallbacks[2].b[1]")
    assert "no model has the name" in noted(found, f"{place}fallbacks[3].missing[0]")
    assert "not a mapping" in noted(found, f"{place}fallbacks[4]")
    assert found.config["models"]["a"]["fallbacks"] == {"context_window": ["b"]}
    assert "listed" in noted(found, f"{place}model_group_alias.old.hidden")
    assert "no model" in noted(found, f"{place}model_group_alias.lost")
    assert "one model" in noted(found, f"{place}model_group_alias.many")
    assert "is above it" in noted(found, "litellm_settings.fallbacks")


def test_a_fallback_keeps_what_is_its_own() -> None:
    found = imported("""
        model_list:
          - {model_name: a, litellm_params: {model: openai/x, rpm: 5}}
          - {model_name: limited, litellm_params: {model: openai/x, rpm: 9}}
          - model_name: priced
            litellm_params: {model: openai/x, rpm: 5, input_cost_per_token: 1e-6}
          - {model_name: same, litellm_params: {model: openai/x, rpm: 5}}
          - model_name: short
            litellm_params: {model: anthropic/y, max_tokens: 500, drop_params: true}
            model_info: {id: the-short}
          - {model_name: short2, litellm_params: {model: anthropic/z, max_tokens: 500}}
        router_settings:
          fallbacks: [{a: [limited, priced, same, short]}, {short: [short2, a]}]
          default_fallbacks: [the-short]
          max_fallbacks: 1
        """)
    price = {"input": 1, "output": 0}
    assert targets(found, "a") == [
        {"provider": "openai", "model": "x", "rpm": 5},
        {"provider": "openai", "model": "x", "rpm": 9, "priority": 2},
        {"provider": "openai", "model": "x", "rpm": 5, "priority": 3, "price": price},
        {"provider": "anthropic", "model": "y", "priority": 4},
    ]
    assert found.config["providers"]["anthropic"]["unsupported"] == "drop"
    said = {note.field for note in found.notes if "not its own" in note.text}
    assert said == {
        *("router_settings.fallbacks[0].a[3]", "router_settings.fallbacks[1].short[1]"),
        "router_settings.default_fallbacks[0]",
    }


def chained(fallbacks: dict[str, list[str]], default: str = "[]", **router: Any) -> dict[str, str]:
    """What each of the models a to g asks, in order."""
    listed = "".join(
        f"  - {{model_name: {name}, litellm_params: {{model: openai/{name}}}}}\n"
        for name in "abcdefg"
    )
    found = imported(
        f"model_list:\n{listed}"
        f"router_settings: {{fallbacks: {[{n: o} for n, o in fallbacks.items()]}, "
        f"model_group_alias: {{also: b}}, {''.join(f'{n}: {v}, ' for n, v in router.items())}}}\n"
        f"litellm_settings: {{default_fallbacks: {default}}}\n"
    )
    assert not [note for note in found.notes if "fallbacks" in note.field]
    each = found.config["models"]
    assert all(
        [target.get("priority", 1) for target in model["targets"]]
        == list(range(1, len(model["targets"]) + 1))
        for model in each.values()
    )
    return {
        name: "".join(target.get("model", name) for target in model["targets"])
        for name, model in each.items()
    }


def test_the_fallbacks_of_a_fallback_follow_it() -> None:
    found = chained({"a": ["b", "d"], "b": ["c"], "d": ["e", "a"]})
    assert [found[name] for name in "abcde"] == ["abcde", "bc", "c", "deabc", "e"]
    assert found["also"] == "bc"
    assert chained({"a": ["also"], "b": ["c"]})["a"] == "abc"
    assert chained({"a": ["b"], "b": ["c"]}, default="[d]")["a"] == "abcd"
    assert chained({"a": ["a", "b"], "b": ["b", "a", "c"]})["a"] == "abc"


@pytest.mark.parametrize(
    ("router", "reached"),
    [({}, "abcdef"), ({"max_fallbacks": 2}, "abc"), ({"max_fallbacks": "0"}, "a")],
)
def test_fallbacks_are_followed_as_deep_as_litellm_follows_them(
    router: dict[str, Any], reached: str
) -> None:
    chain = {name: [after] for name, after in zip("abcdef", "bcdefg", strict=True)}
    assert chained(chain, **router)["a"] == reached
    # Its place in a list counts, too.
    assert chained({"a": ["b", "c", "d"], "d": ["e"]}, max_fallbacks=3)["a"] == "abcd"
    assert chained({"a": ["b", "c", "d"], "c": ["e"]}, max_fallbacks=3)["a"] == "abced"


def test_an_alias_goes_before_a_model_of_its_name() -> None:
    found = imported("""
        model_list:
          - {model_name: a, litellm_params: {model: openai/a}}
          - {model_name: b, litellm_params: {model: groq/b}}
        router_settings: {model_group_alias: {a: b}}
        """)
    assert targets(found, "a") == [{"provider": "groq", "model": "b"}]
    assert "takes its place" in noted(found, "router_settings.model_group_alias.a")
