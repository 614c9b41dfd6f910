"""What servers that speak OpenAI's dialect do otherwise: data, a row for each in PROVIDERS."""

import msgspec

# Names under which everybody but OpenAI itself knows the bound of the output.
OLD_MAX = {"max_completion_tokens": "max_tokens"}


# Fields that a server may be spared without changing the answer.
HINTS = frozenset(
    (
        *("user", "metadata", "service_tier", "verbosity", "reasoning_effort", "store"),
        *("safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    )
)


# Ends of the names of servers that answer a field they do not know with an error, in calls too.
STRICT_HOSTS = ("api.openai.com", ".azure.com", "api.groq.com", "api.mistral.ai")

# Of `reasoning_details`: all, or those whose secrets say who made them.
ALL, TOLD = "all", "told"


class Quirks(msgspec.Struct, frozen=True):
    """How a server differs.

    `renames`: field -> its name there. `refuses`: fields that it answers with an error.
    `usage_option`: a stream's usage is asked for by `stream_options`; False: it comes anyway, and
    asking is an error. `thoughts_back`: the field in which earlier thoughts are sent back;
    `thoughts_needed`: never without it where tools were called. `tool_choices`: mode -> its name
    there. `top_k`: it is known there, though OpenAI has none. `details`: thoughts that are sent
    back in OpenRouter's `reasoning_details`, none where it is empty.
    """

    renames: dict[str, str] = {}
    refuses: frozenset[str] = frozenset()
    usage_option: bool = True
    thoughts_back: str = ""
    thoughts_needed: bool = False
    tool_choices: dict[str, str] = {}
    top_k: bool = False
    details: str = ""
    thinking_parts: bool = False  # thoughts are parts of the content, there and back (Mistral)
    short_ids: bool = False  # of calls: nine letters and digits
    document_urls: bool = False  # documents are parts of their own, by URL (Mistral)
    results_answered: bool = False  # nobody but the assistant speaks after results (Mistral)


NONE = Quirks()
