"""A request with everything in it, in each dialect; and by what each feature is known again.

Marks are unique, so a mark in what goes to a provider is the feature having come through.
"""

from typing import Any

PNG, PDF, WAV = "aW1hZ2UtcG5n", "JVBERi1tYXJr", "d2F2LW1hcms="
TOOL_SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "mark-tool-schema"}},
    "required": ["city"],
    "additionalProperties": False,
}
ANSWER_SCHEMA = {
    "type": "object",
    "properties": {"sky": {"type": "string", "description": "mark-answer-schema"}},
    "required": ["sky"],
    "additionalProperties": False,
}

# Feature -> its mark in any provider's body.
MARKS = {
    "system": "mark-system",
    "text": "mark-user",
    "assistant text": "mark-assistant",
    "image": PNG,
    "document": PDF,
    "image by URL": "https://x.test/mark.png",
    "tool": "mark-tool-schema",
    "tool description": "mark-tool-description",
    "call": "call_mark1",
    "parallel call": "call_mark2",
    "call's arguments": "mark-city",
    "tool result": "mark-result",
    "second tool result": "mark-other-result",
    "answer schema": "mark-answer-schema",
    "stop": "mark-stop",
    "user": "mark-enduser",
    "thinking": "mark-thought",
    "signature": "bWFyay1zaWduYXR1cmU=",
}

CHAT: dict[str, Any] = {
    "model": "asked",
    "messages": [
        {"role": "system", "content": "mark-system"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "mark-user"},
                {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}},
                {"type": "image_url", "image_url": {"url": "https://x.test/mark.png"}},
                {
                    "type": "file",
                    "file": {
                        "file_data": f"data:application/pdf;base64,{PDF}",
                        "filename": "a.pdf",
                    },
                },
            ],
        },
        {
            "role": "assistant",
            "content": "mark-assistant",
            "reasoning_details": [
                {
                    "type": "reasoning.text",
                    "text": "mark-thought",
                    "signature": "bWFyay1zaWduYXR1cmU=",
                }
            ],
            "tool_calls": [
                {
                    "id": "call_mark1",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"mark-city"}'},
                },
                {
                    "id": "call_mark2",
                    "type": "function",
                    "function": {"name": "weather", "arguments": '{"city":"Bergen"}'},
                },
            ],
        },
        {"role": "tool", "tool_call_id": "call_mark1", "content": "mark-result"},
        {"role": "tool", "tool_call_id": "call_mark2", "content": "mark-other-result"},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [
        {
            "type": "function",
            "function": {
                "name": "weather",
                "description": "mark-tool-description",
                "parameters": TOOL_SCHEMA,
                "strict": True,
            },
        }
    ],
    "tool_choice": "auto",
    "parallel_tool_calls": True,
    "response_format": {
        "type": "json_schema",
        "json_schema": {"name": "weather_report", "schema": ANSWER_SCHEMA, "strict": True},
    },
    "max_completion_tokens": 3000,
    "temperature": 0.5,
    "top_p": 0.9,
    "presence_penalty": 0.1,
    "frequency_penalty": 0.2,
    "seed": 7,
    "logprobs": True,
    "top_logprobs": 2,
    "stop": ["mark-stop"],
    "reasoning_effort": "low",
    "verbosity": "low",
    "user": "mark-enduser",
    "metadata": {"team": "search"},
    "service_tier": "auto",
    "store": False,
    "stream": True,
    "stream_options": {"include_usage": True},
}

RESPONSES: dict[str, Any] = {
    "model": "asked",
    "instructions": "mark-system",
    "input": [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "mark-user"},
                {
                    "type": "input_image",
                    "image_url": f"data:image/png;base64,{PNG}",
                    "detail": "auto",
                },
                {"type": "input_image", "image_url": "https://x.test/mark.png", "detail": "low"},
                {
                    "type": "input_file",
                    "file_data": f"data:application/pdf;base64,{PDF}",
                    "filename": "a.pdf",
                },
            ],
        },
        {
            "type": "message",
            "role": "assistant",
            "content": "mark-assistant",
        },
        {
            "type": "function_call",
            "call_id": "call_mark1",
            "name": "weather",
            "arguments": '{"city":"mark-city"}',
        },
        {
            "type": "function_call",
            "call_id": "call_mark2",
            "name": "weather",
            "arguments": '{"city":"Bergen"}',
        },
        {"type": "function_call_output", "call_id": "call_mark1", "output": "mark-result"},
        {"type": "function_call_output", "call_id": "call_mark2", "output": "mark-other-result"},
        {"role": "user", "content": "And now?"},
    ],
    "tools": [
        {
            "type": "function",
            "name": "weather",
            "description": "mark-tool-description",
            "parameters": TOOL_SCHEMA,
            "strict": True,
        }
    ],
    "tool_choice": "auto",
    "text": {
        "format": {
            "type": "json_schema",
            "name": "weather_report",
            "schema": ANSWER_SCHEMA,
            "strict": True,
        }
    },
    "reasoning": {"effort": "low", "summary": "auto"},
    "max_output_tokens": 3000,
    "temperature": 0.5,
    "top_p": 0.9,
    "safety_identifier": "mark-enduser",
    "metadata": {"team": "search"},
    "store": False,
    "stream": True,
}

MESSAGES: dict[str, Any] = {
    "model": "asked",
    "max_tokens": 3000,
    "system": [{"type": "text", "text": "mark-system", "cache_control": {"type": "ephemeral"}}],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "mark-user"},
                {
                    "type": "image",
                    "source": {"type": "base64", "media_type": "image/png", "data": PNG},
                },
                {"type": "image", "source": {"type": "url", "url": "https://x.test/mark.png"}},
                {
                    "type": "document",
                    "title": "a.pdf",
                    "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
                },
            ],
        },
        {
            "role": "assistant",
            "content": [
                {
                    "type": "thinking",
                    "thinking": "mark-thought",
                    "signature": "bWFyay1zaWduYXR1cmU=",
                },
                {"type": "text", "text": "mark-assistant"},
                {
                    "type": "tool_use",
                    "id": "call_mark1",
                    "name": "weather",
                    "input": {"city": "mark-city"},
                },
                {
                    "type": "tool_use",
                    "id": "call_mark2",
                    "name": "weather",
                    "input": {"city": "Bergen"},
                },
            ],
        },
        {
            "role": "user",
            "content": [
                {
                    "type": "tool_result",
                    "tool_use_id": "call_mark1",
                    "content": [{"type": "text", "text": "mark-result"}],
                },
                {
                    "type": "tool_result",
                    "tool_use_id": "call_mark2",
                    "content": "mark-other-result",
                    "is_error": True,
                },
                {"type": "text", "text": "And now?"},
            ],
        },
    ],
    "tools": [
        {
            "name": "weather",
            "description": "mark-tool-description",
            "input_schema": TOOL_SCHEMA,
            "cache_control": {"type": "ephemeral", "ttl": "1h"},
        }
    ],
    "tool_choice": {"type": "auto"},
    "thinking": {"type": "enabled", "budget_tokens": 2000},
    "output_config": {"format": {"type": "json_schema", "schema": ANSWER_SCHEMA}},
    "stop_sequences": ["mark-stop"],
    "metadata": {"user_id": "mark-enduser"},
    "service_tier": "auto",
    "stream": True,
}

ASKS = {"chat": CHAT, "responses": RESPONSES, "messages": MESSAGES}
