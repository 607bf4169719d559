"""Formatters: messages as each provider's API takes them."""

from callsheet.formatters.anthropic import AnthropicChatFormatter, AnthropicMultiAgentFormatter
from callsheet.formatters.base import CharTokenCounter, FormatterBase, TokenCounterBase, TruncatedFormatterBase
from callsheet.formatters.dashscope import DashScopeChatFormatter, DashScopeMultiAgentFormatter
from callsheet.formatters.gemini import GeminiChatFormatter, GeminiMultiAgentFormatter
from callsheet.formatters.ollama import OllamaChatFormatter, OllamaMultiAgentFormatter
from callsheet.formatters.openai import (
    DeepSeekChatFormatter,
    DeepSeekMultiAgentFormatter,
    OpenAIChatFormatter,
    OpenAIMultiAgentFormatter,
)

__all__ = [
    "AnthropicChatFormatter",
    "AnthropicMultiAgentFormatter",
    "CharTokenCounter",
    "DashScopeChatFormatter",
    "DashScopeMultiAgentFormatter",
    "DeepSeekChatFormatter",
    "DeepSeekMultiAgentFormatter",
    "FormatterBase",
    "GeminiChatFormatter",
    "GeminiMultiAgentFormatter",
    "OllamaChatFormatter",
    "OllamaMultiAgentFormatter",
    "OpenAIChatFormatter",
    "OpenAIMultiAgentFormatter",
    "TokenCounterBase",
    "TruncatedFormatterBase",
]
