"""What LiteLLM takes from variables: addresses, clouds' settings; and which variables are read."""

import pytest

from tests.support.litellm import deployed, noted

INTERNAL = "http://llm.internal:8000/v1"
REACHED = {"api_key": "env:K", "base_url": INTERNAL}


@pytest.mark.parametrize(
    ("model", "variables", "entry"),
    [
        (
            "openai/x",
            {"OPENAI_API_BASE": "http://other/v1", "OPENAI_BASE_URL": INTERNAL},
            {"kind": "openai-compatible", **REACHED, "prices": "openai"},
        ),
        (
            "anthropic/x",
            {"ANTHROPIC_BASE_URL": "http://h"},
            {"kind": "anthropic", "api_key": "env:K", "base_url": "http://h/v1"},
        ),
        (
            "groq/x",
            {"GROQ_API_BASE": "os.environ/OTHER"},
            {"kind": "groq", "api_key": "env:K", "base_url": "env:OTHER"},
        ),
        (
            "azure/x",
            {"AZURE_API_BASE": "https://a.openai.azure.com"},
            {"kind": "azure", "api_key": "env:K", "base_url": "https://a.openai.azure.com"},
        ),
        (
            "openai_like/x",
            {"OPENAI_LIKE_API_BASE": INTERNAL},
            {"kind": "openai-compatible", **REACHED},
        ),
    ],
)
def test_an_address_among_the_files_variables_is_the_providers(
    model: str, variables: dict[str, str], entry: dict[str, str]
) -> None:
    key = {"api_key": "os.environ/K"}
    found = deployed({"model": model, **key}, environment_variables=variables)
    assert list(found.config["providers"].values()) == [entry]
    *unused, used = variables
    assert noted(found, f"environment_variables.{used}").startswith("carried over as base_url")
    for name in unused:
        assert "write it as" in noted(found, f"environment_variables.{name}")
    assert not noted(found, "environment_variables")
    assert INTERNAL not in str(found.notes)


@pytest.mark.parametrize("variable", ["OPENAI_BASE_URL", "OPENAI_API_BASE"])
def test_an_address_of_openais_variables_has_openais_key(variable: str) -> None:
    variables = {variable: INTERNAL, "OPENAI_API_KEY": "sk-x"}
    found = deployed({"model": "openai/x"}, environment_variables=variables)
    (entry,) = found.config["providers"].values()
    assert entry == {
        "kind": "openai-compatible",
        "api_key": "env:OPENAI_API_KEY",
        "base_url": INTERNAL,
        "prices": "openai",
    }
    assert "where Sluice runs" in noted(found, "environment_variables.OPENAI_API_KEY")
    assert not noted(found, "model_list[0].litellm_params.api_base")
    own = deployed({"model": "openai/x", "api_base": INTERNAL}, environment_variables=variables)
    (entry,) = own.config["providers"].values()
    assert "api_key" not in entry
    assert "none is sent" in noted(own, "model_list[0].litellm_params.api_base")


def test_a_deployments_own_address_is_above_that_of_a_variable() -> None:
    found = deployed(
        {"model": "openai/x", "api_base": INTERNAL, "api_key": "os.environ/K"},
        environment_variables={"OPENAI_BASE_URL": "http://other/v1", "OPENAI_API_KEY": "sk-x"},
    )
    assert [one["base_url"] for one in found.config["providers"].values()] == [INTERNAL]
    assert "write it as" in noted(found, "environment_variables.OPENAI_BASE_URL")
    assert "refers to it" in noted(found, "environment_variables.OPENAI_API_KEY")
    assert not noted(found, "environment_variables")


def test_variables_that_may_have_had_an_address_are_said_once() -> None:
    plain = ({"model": f"openai/{i}"} for i in range(3))
    others = ({"model": "groq/x"}, {"model": "azure/x"}, {"model": "bedrock/x"})
    found = deployed(*plain, *others)
    (said,) = [note.text for note in found.notes if note.field == "environment_variables"]
    assert "OPENAI_BASE_URL, OPENAI_API_BASE, GROQ_API_BASE, write" in said


AZURE = {"model": "azure/x", "api_base": "https://a.openai.azure.com"}
VERTEX = {"model": "vertex_ai/gemini-pro", "vertex_project": "p"}
BEDROCK = {"model": "bedrock/x", "api_key": "os.environ/K"}


@pytest.mark.parametrize(
    ("params", "sections", "field", "value"),
    [
        (VERTEX, {"VERTEXAI_LOCATION": "europe-west4"}, "location", "europe-west4"),
        (VERTEX, {"VERTEX_LOCATION": "os.environ/L", "VERTEXAI_LOCATION": ""}, "location", "env:L"),
        ({**VERTEX, "vertex_ai_location": "l"}, {"VERTEXAI_LOCATION": "m"}, "location", "l"),
        (VERTEX, {"VERTEXAI_PROJECT": "q"}, "project", "p"),
        ({**VERTEX, "vertex_project": None}, {"VERTEXAI_PROJECT": "q"}, "project", "q"),
        (VERTEX, {"VERTEXAI_CREDENTIALS": "s3cret"}, "credentials", "env:VERTEXAI_CREDENTIALS"),
        (AZURE, {"AZURE_API_VERSION": "2024-10-21"}, "api_version", "2024-10-21"),
        ({**AZURE, "api_version": "v1"}, {"AZURE_API_VERSION": "2024-10-21"}, "api_version", None),
        (BEDROCK, {"AWS_REGION": "r", "AWS_REGION_NAME": "q"}, "region", "q"),
        (BEDROCK, {"AWS_REGION": "r"}, "region", "r"),
        ({**BEDROCK, "model": "bedrock/us-west-2/x"}, {"AWS_REGION": "r"}, "region", "us-west-2"),
    ],
)
def test_what_a_cloud_needs_may_be_among_the_files_variables(
    params: dict[str, str], sections: dict[str, str], field: str, value: str | None
) -> None:
    found = deployed(params, environment_variables=sections)
    (entry,) = found.config["providers"].values()
    assert entry.get(field) == value
    assert "s3cret" not in str(found)
    for name in sections:
        said = noted(found, f"environment_variables.{name}")
        if entry.get(field) == sections[name]:
            assert said.startswith(f"carried over as {field}")
        elif f"env:{name}" in entry.values():
            assert said == "not carried over: set it where Sluice runs"


def test_a_location_for_all_of_vertex_is_above_that_of_a_variable() -> None:
    usual = {"vertex_location": "europe-west4", "vertex_project": "q"}
    variables = {"VERTEXAI_LOCATION": "us-east1"}
    found = deployed(VERTEX, litellm_settings=usual, environment_variables=variables)
    assert found.config["providers"]["vertex"]["location"] == "europe-west4"
    assert "refers to it" in noted(found, "environment_variables.VERTEXAI_LOCATION")
    assert not noted(found, "litellm_settings.vertex_location")
    elsewhere = deployed(AZURE, litellm_settings=usual, environment_variables=variables)
    for place in ("litellm_settings.vertex_location", "environment_variables.VERTEXAI_LOCATION"):
        said = noted(elsewhere, place)
        assert ("no deployment is at that cloud" in said) == place.startswith("litellm")


def test_what_a_cloud_needs_and_nobody_says_is_noted() -> None:
    place = "model_list[0].litellm_params."
    found = deployed(VERTEX)
    assert found.config["providers"]["vertex"]["location"] == "env:VERTEXAI_LOCATION"
    assert "VERTEXAI_LOCATION has to be set" in noted(found, f"{place}vertex_location")
    assert "not read VERTEXAI_CREDENTIALS" in noted(found, f"{place}vertex_credentials")
    assert "not read AZURE_API_VERSION" in noted(deployed(AZURE), f"{place}api_version")
    assert "not read AWS_REGION_NAME" in noted(deployed(BEDROCK), f"{place}aws_region_name")


def test_only_variables_that_are_read_are_to_be_set() -> None:
    names = {
        *("GROQ_API_KEY", "AWS_ACCESS_KEY_ID", "REDIS_URL"),
        *("LANGFUSE_SECRET_KEY", "GOOGLE_APPLICATION_CREDENTIALS"),
    }
    found = deployed(
        {"model": "groq/x"},
        {"model": "bedrock/x", "aws_region_name": "r"},
        environment_variables=dict.fromkeys(names, "x"),
    )
    said = {name: noted(found, f"environment_variables.{name}") for name in names}
    assert {name for name, text in said.items() if "set it where Sluice runs" in text} == {
        *("GROQ_API_KEY", "AWS_ACCESS_KEY_ID", "REDIS_URL")
    }
