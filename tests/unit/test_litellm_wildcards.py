"""LiteLLM's wildcards: whose a name is, what may follow models, and what a pattern loses."""

from fnmatch import fnmatchcase

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cli.import_litellm import written
from gateway.config.litellm import Translation
from gateway.config.litellm.claims import Pattern, divided
from gateway.config.load import load_text
from gateway.pipeline.catalogue import Catalogue
from gateway.policy.pricing import PriceTable, Table
from tests.support.litellm import imported, noted, targets

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


def behind(model: str, *patterns: str) -> Translation:
    """A model with a fallback and an alias of that name, and wildcards."""
    wild = "".join(
        f'      - {{model_name: "{pattern}", litellm_params: {{model: "{kind}/{model}"}}}}\n'
        for one in patterns
        for pattern, kind, model in [one.split(" ")]
    )
    return imported(
        "model_list:\n"
        "      - {model_name: m, litellm_params: {model: anthropic/claude-sonnet-4}}\n"
        f"{wild}"
        "router_settings:\n"
        f"  fallbacks: [{{m: [{model}]}}]\n"
        f"  context_window_fallbacks: [{{m: [{model}]}}, {{{model}: [m]}}]\n"
        f"  model_group_alias: {{fast: {model}}}\n"
    )


@pytest.mark.parametrize(
    ("model", "patterns", "provider"),
    [
        ("gpt-4o", ["* openai *"], "openai"),
        ("gpt-4o", ["gpt-4* openai gpt-4*"], "openai"),
        ("gpt-4o", ["openai/* openai *"], "openai"),  # guessed
        ("llama-3", ["llama* groq llama*", "gpt-* openai gpt-*"], "groq"),
        ("org/llama", ["org/* groq org/*"], "groq"),
        ("gpt-4o", ["gpt-* openai gpt-*", "gpt-4* groq gpt-4*"], "groq"),  # the longest
        ("gpt-5", ["gpt-* openai gpt-*", "gpt-4* groq gpt-4*"], "openai"),
        ("claude-3", ["anthropic/* bedrock *"], "anthropic"),
    ],
)
def test_what_a_wildcard_covers_may_follow_a_model(
    model: str, patterns: list[str], provider: str
) -> None:
    found = behind(model, *patterns)
    assert targets(found)[1] == {"provider": provider, "model": model, "priority": 2}
    assert targets(found, "fast") == [{"provider": provider, "model": model}]
    models = found.config["models"]
    assert models["m"]["fallbacks"] == {"context_window": [model]}
    assert models[model]["fallbacks"] == {"context_window": ["m"]}
    assert not [note for note in found.notes if "fallbacks" in note.field]


@pytest.mark.parametrize(
    ("patterns", "why"),
    [
        (["claude-* anthropic claude-*"], "no model has"),
        (["gpt-* openai gpt-*", "*-4o groq *-4o"], "two patterns"),
    ],
)
def test_what_no_wildcard_alone_covers_is_lost(patterns: list[str], why: str) -> None:
    found = behind("gpt-4o", *patterns)
    for place in ("fallbacks[0].m[0]", "context_window_fallbacks[1].gpt-4o[0]"):
        assert why in noted(found, f"router_settings.{place}")
    assert why in noted(found, "router_settings.model_group_alias.fast")


def test_what_follows_a_bare_name_follows_it_behind_a_wildcards_prefix() -> None:
    found = imported("""
        model_list:
          - {model_name: "openai/*", litellm_params: {model: "openai/*"}}
          - {model_name: "anthropic/*", litellm_params: {model: "anthropic/*"}}
          - {model_name: "groq/*", litellm_params: {model: "groq/*"}}
          - {model_name: "house/*", litellm_params: {model: "openai/*", api_base: "http://h/v1"}}
          - {model_name: xai/grok-4, litellm_params: {model: xai/grok-4}}
          - {model_name: local, litellm_params: {model: ollama/x}}
          - {model_name: other, litellm_params: {model: ollama/y}}
        router_settings:
          fallbacks: [{gpt-4o: [local]}, {llama-3: [local]}, {openai/o3: [other]}, {o3: [local]},
            {grok-4: [local]}, {local: [xai/grok-4]}]
        """)
    openai, local = ("openai", 1), [("ollama", 2), ("xai", 3)]
    assert {
        name: [(one["provider"], one.get("priority", 1)) for one in model["targets"]]
        for name, model in found.config["models"].items()
        if not name.startswith("groq/")
    } == {
        **{name: [openai, *local] for name in ("gpt-4o", "openai/gpt-4o", "o3")},
        "openai/o3": [openai, ("ollama", 2)],
        "xai/grok-4": [("xai", 1), ("ollama", 2)],
        "local": [("ollama", 1), ("xai", 2)],
        "other": [("ollama", 1)],
    }
    assert targets(found, "openai/gpt-4o")[0]["model"] == "gpt-4o"
    assert targets(found, "groq/llama-3")[0] == {"provider": "groq", "model": "llama-3"}
    assert not [note for note in found.notes if "fallbacks" in note.field]


def test_a_pattern_keeps_its_names_beside_a_model_of_its_kind() -> None:
    found = imported("""
        model_list:
          - {model_name: m, litellm_params: {model: openai/gpt-4o, api_key: os.environ/A}}
          - {model_name: "gpt-4*", litellm_params: {model: "openai/gpt-4*", api_key: os.environ/B}}
        router_settings: {model_group_alias: {also: gpt-4.1}}
        """)
    assert targets(found, "also") == [{"provider": "openai", "model": "gpt-4.1"}]
    claims = {one["api_key"]: one["models"] for one in found.config["providers"].values()}
    assert claims == {"env:A": [], "env:B": ["gpt-4*"]}


def served(found: Translation, name: str) -> str | None:
    """The provider that a running gateway asks for a name."""
    config = load_text(written(found.config, ""), "", {"AWS_REGION": "r", **AWS_KEYS, "K": "k"})
    model = Catalogue(config, PriceTable(Table("", ())), "").resolve(name)
    return None if model is None else model.routes[0].target.provider


AWS_KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}
AZURE = "api_base: 'https://x.openai.azure.com', api_version: '2024-10-21', api_key: os.environ/K"
OWN = "api_base: 'https://h.internal/v1', api_key: os.environ/K"
KEY = "api_key: os.environ/K"
VERTEX = "vertex_project: p, vertex_location: l"


@pytest.mark.parametrize(
    ("wild", "reached"),
    [
        ([("gpt-*", "azure", AZURE)], {"gpt-4o": "azure", "o3": None}),
        ([("*", "groq", KEY)], {"gpt-4o": "groq", "claude-3": "groq"}),
        (
            [("gpt-*", "groq", KEY), ("gpt-4*", "azure", AZURE), ("gpt-4o*", "groq", KEY)],
            {
                "gpt-5": "groq",
                "gpt-": "groq",
                "gpt-4": "azure",
                "gpt-4-x": "azure",
                "gpt-4o": "groq",
            },
        ),
        ([("*", "groq", KEY), ("o3*", "azure", AZURE)], {"o3": "azure", "o4": "groq", "x": "groq"}),
        ([("anthropic/*", "bedrock", KEY)], {"claude-3": "anthropic", "gpt-4o": "openai"}),
        ([("openai/*", "openai", OWN)], {"gpt-4o": "openai", "o3": "openai"}),
        (
            [("openai/*", "openai", OWN), ("gpt-4*", "azure", AZURE)],
            {"gpt-4o": "azure", "gpt-5": "openai", "o3": "openai"},
        ),
        ([("vertex_ai/*", "vertex_ai", VERTEX)], {"gemini-2": "vertex_ai"}),
        ([("bedrock/*", "bedrock", KEY)], {"eu.amazon.nova": "bedrock"}),
    ],
)
def test_a_bare_name_has_the_provider_that_litellm_gives_it_to(
    wild: list[tuple[str, str, str]], reached: dict[str, str | None]
) -> None:
    listed = "".join(
        f'  - {{model_name: "{name}", litellm_params: '
        f'{{model: "{kind}/{name.rpartition("/")[2]}", {params}}}}}\n'
        for name, kind, params in wild
    )
    others = "".join(
        f"  - {{model_name: m, litellm_params: {{model: {model}, {KEY}}}}}\n"
        for model in ("openai/gpt-4o", "anthropic/claude-3", "gemini/gemini-2")
    )
    for text in (listed + others, others + listed):
        found = imported(f"model_list:\n{text}")
        assert {name: served(found, name) for name in reached} == reached
        assert "two patterns" not in str(found.notes)


def test_names_that_two_patterns_cover_are_said() -> None:
    found = imported("""
        model_list:
          - {model_name: "gpt-*", litellm_params: {model: "openai/gpt-*"}}
          - {model_name: "*-mini", litellm_params: {model: "groq/*-mini"}}
        """)
    assert all("two patterns" in noted(found, f"model_list[{i}]") for i in range(2))


HEADS = st.text("ab-]!^", max_size=4)


@given(st.dictionaries(HEADS, st.sampled_from("xyz"), max_size=5), st.text("ab-]!^", max_size=6))
def test_the_longest_beginning_has_the_name(heads: dict[str, str], name: str) -> None:
    patterns = [Pattern(f"{head}*", provider, "") for head, provider in heads.items()]
    claims, unclear = divided(patterns, {})
    fit = [head for head in heads if name.startswith(head)]
    expected = {heads[max(fit, key=len)]} if fit and name else set()
    if name:
        found = {p for p, globs in claims.items() for glob in globs if fnmatchcase(name, glob)}
        assert (found, unclear) == (expected, [])


def test_what_a_pattern_loses_is_said() -> None:
    own = "max_tokens: 4096, drop_params: true, rpm: 5"
    found = imported(f"""
        model_list:
          - {{model_name: "openai/*", litellm_params: {{model: "openai/*", api_key: a, {own}}}}}
          - {{model_name: "openai/*", litellm_params: {{model: "openai/*", api_key: b, {own}}}}}
        """)
    assert found.config["providers"]["openai"]["unsupported"] == "drop"
    for i in range(2):
        said = [note for note in found.notes if note.field.startswith(f"model_list[{i}]")]
        lost = {one.field.rpartition(".")[2] for one in said if one.text.startswith("not carried")}
        assert {"max_tokens", f"model_list[{i}]"} <= lost
        assert not [one for one in said if one.text.startswith("carried over")]


def test_what_follows_every_model_follows_none_of_a_pattern() -> None:
    source = """
        model_list:
          {}
          - {{model_name: local, litellm_params: {{model: ollama/x, api_base: "http://h:1"}}}}
          - {{model_name: other, litellm_params: {{model: ollama/y, api_base: "http://h:1"}}}}
        litellm_settings:
          default_fallbacks: [local, nobody]
          context_window_fallbacks: [{{"*": [local]}}]
        """
    wild = imported(source.format('- {model_name: "xai/*", litellm_params: {model: "xai/*"}}'))
    plain = imported(source.format("- {model_name: a, litellm_params: {model: xai/a}}"))
    for place in ("default_fallbacks[0]", "context_window_fallbacks[0].*[0]"):
        assert "only a pattern" in noted(wild, f"litellm_settings.{place}")
        assert not noted(plain, f"litellm_settings.{place}")
    assert "only a pattern" not in noted(wild, "litellm_settings.default_fallbacks[1]")
    assert wild.config["models"]["other"] == plain.config["models"]["other"]
