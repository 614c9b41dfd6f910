"""LiteLLM's model groups become models: ranks, shares, fallbacks, aliases, wildcards."""

from typing import Any

import pytest

from gateway.cli.import_litellm import verify, written
from gateway.config.litellm import translate
from gateway.config.load import load_text
from gateway.pipeline.catalogue import Catalogue
from gateway.policy.pricing import PriceTable, Table
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
    ],
)
def test_requests_are_shared_by_weight_or_by_limits(
    shares: tuple[dict[str, Any], ...], weights: list[tuple[int, int]]
) -> None:
    models = ("openai/x", "groq/x")
    deployments = [{"model": m, **share} for m, share in zip(models, shares, strict=True)]
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
    assert deployed(drops).config["models"]["m"]["unsupported"] == "drop"
    everywhere = deployed(plain, litellm_settings={"drop_params": True}).config
    assert everywhere["unsupported"] == "drop"
    assert "unsupported" not in everywhere["models"]["m"]
    refuses = deployed({**plain, "drop_params": False}, litellm_settings={"drop_params": "true"})
    assert refuses.config["models"]["m"]["unsupported"] == "refuse"
    mixed = deployed(plain, drops)
    assert "unsupported" not in mixed.config["models"]["m"]
    assert "for all targets" in noted(mixed, "model_list[0].litellm_params.drop_params")


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
    keys: list[dict[str, Any]] = [
        {"model": "openai/x", "api_key": f"os.environ/K{i}", "rpm": 10 * i} for i in (1, 2)
    ]
    (target,) = targets(found := deployed(*keys))
    assert target["rpm"] == 30
    assert "the sum" in noted(found, "model_list[0].litellm_params.rpm")
    (target,) = targets(found := deployed(*keys, {"model": "openai/x", "api_key": "os.environ/K"}))
    assert "rpm" not in target
    assert "keys without one" in noted(found, "model_list[0].litellm_params.rpm")
    tagged = deployed(keys[0], {**keys[1], "tags": ["a"]})
    assert [one.get("tags") for one in targets(tagged)] == [None, ["a"]]


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


WILD = """
    model_list:
      - {model_name: "openai/*", litellm_params: {model: "openai/*"}}
      - model_name: "house/*"
        litellm_params: {model: "openai/*", api_base: "http://h:1/v1", api_key: a}
      - model_name: "bedrock-eu/*"
        litellm_params: {model: "bedrock/*", aws_region_name: eu-west-1}
      - {model_name: "gpt-4*", litellm_params: {model: "openai/gpt-4*", api_key: os.environ/OTHER}}
      - {model_name: "wide/gpt-5*", litellm_params: {model: "azure/gpt-5*"}}
      - {model_name: "fo::*:x", litellm_params: {model: "openai/*"}}
      - {model_name: "*", litellm_params: {model: "*"}}
      - {model_name: named, litellm_params: {model: openai/gpt-4o}}
    """


def test_a_wildcard_is_a_provider_that_clients_can_name() -> None:
    found = imported(WILD)
    assert {name: entry["kind"] for name, entry in found.config["providers"].items()} == {
        "openai": "openai",
        "house": "openai-compatible",
        "bedrock-eu": "bedrock",
        "openai-other": "openai",
        "wide": "azure",
    }
    assert targets(found, "named") == [{"provider": "openai", "model": "gpt-4o"}]
    assert "wider here" in noted(found, "model_list[4]")
    assert "cannot change" in noted(found, "model_list[5]")
    assert "provider/model" in noted(found, "model_list[6]")
    environ = {
        "OPENAI_API_KEY": "k",
        "OTHER": "o",
        "AZURE_API_KEY": "z",
        "AZURE_API_BASE": "https://z.example",
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_SECRET_ACCESS_KEY": "s",
    }
    config = load_text(written(found.config, "config.yaml"), "result", environ)
    catalogue = Catalogue(config, PriceTable(Table("", ())), "")
    for asked, provider_name, model in (
        ("openai/gpt-4o", "openai", "gpt-4o"),
        ("house/org/llama", "house", "org/llama"),
        ("bedrock-eu/meta.llama3", "bedrock-eu", "meta.llama3"),
    ):
        served = catalogue.resolve(asked)
        assert served is not None
        target = served.routes[0].target
        assert (target.provider, target.model) == (provider_name, model)


def test_a_bare_name_goes_to_the_wildcard_of_its_prefix() -> None:
    found = imported("""
        model_list:
          - {model_name: own, litellm_params: {model: openai/gpt-4o, api_key: os.environ/A}}
          - {model_name: "openai/*", litellm_params: {model: "openai/*", api_key: os.environ/B}}
          - {model_name: "team/*", litellm_params: {model: "openai/*", api_key: os.environ/C}}
          - {model_name: claude, litellm_params: {model: anthropic/claude-sonnet-4-5}}
        """)
    config = load_text(
        written(found.config, "config.yaml"),
        "result",
        dict.fromkeys(("A", "B", "C", "ANTHROPIC_API_KEY"), "key"),
    )
    served = Catalogue(config, PriceTable(Table("", ())), "").resolve("gpt-4o-mini")
    assert served is not None
    assert served.routes[0].target.provider == "openai"


def test_one_provider_may_take_every_name() -> None:
    found = imported("""
        model_list:
          - {model_name: "*", litellm_params: {model: "openai/*"}}
          - {model_name: "*", litellm_params: {model: "groq/*", input_cost_per_token: 1}}
          - {model_name: claude, litellm_params: {model: anthropic/claude-sonnet-4-5}}
        """)
    providers = found.config["providers"]
    assert (providers["openai"]["models"], providers["anthropic"]["models"]) == (["*"], [])
    assert "alone answers" in noted(found, "model_list[1]")


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
    behind = [("xai", "b", 3), ("groq", "b", 4), ("openai", "gpt-5", 5)]
    assert reached("a") == own + behind
    assert reached("old") == own + behind
    assert reached("b") == [("xai", "b", 1), ("groq", "b", 2), ("openai", "c", 3)]
    assert reached("c") == [("openai", "c", 1), ("groq", "b", 2)]
    assert reached("also") == [("openai", "c", 1), ("groq", "b", 2)]
    assert reached("openai/o3") == [("openai", "o3", 1), ("openai", "c", 2)]
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


def test_an_alias_goes_before_a_model_of_its_name() -> None:
    found = imported("""
        model_list:
          - {model_name: a, litellm_params: {model: openai/a}}
          - {model_name: b, litellm_params: {model: groq/b}}
        router_settings: {model_group_alias: {a: b}}
        """)
    assert targets(found, "a") == [{"provider": "groq", "model": "b"}]
    assert "takes its place" in noted(found, "router_settings.model_group_alias.a")
