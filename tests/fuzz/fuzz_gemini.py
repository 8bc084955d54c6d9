"""Any bytes as a request, response or stream of Gemini's dialects."""

from __future__ import annotations

from tests.fuzz.dialect_checks import JSON_WORDS, checks_of
from tests.fuzz.harness import Target

from mcpmeter.dialects.gemini_count_tokens import GeminiCountTokens
from mcpmeter.dialects.gemini_embeddings import GeminiBatchEmbed, GeminiEmbed
from mcpmeter.dialects.gemini_generate import GeminiGenerate, GeminiGenerateArray

WORDS = tuple(
    word.encode()
    for word in (
        '"contents":[{"parts":[{"text":"Hi"}]}],', '"contents":{"parts":[]},',
        '"generationConfig":{"maxOutputTokens":9},', '"candidateCount":2,',
        '"candidates":[{"content":{"parts":[{"text":"a"}]},"finishReason":"STOP"}],', '"finishReason":"SAFETY",',
        '"promptFeedback":{"blockReason":"SAFETY"},', '"modelVersion":"g",',
        '"usageMetadata":{"promptTokenCount":3,"candidatesTokenCount":2,"totalTokenCount":9},',
        '"promptTokenCount":', '"candidatesTokenCount":', '"thoughtsTokenCount":', '"toolUsePromptTokenCount":',
        '"totalTokenCount":', '"cachedContentTokenCount":',
        '"promptTokensDetails":[{"modality":"AUDIO","tokenCount":9}],', '"inlineData":{},', '"thought":true,',
        '"functionCall":{"name":"f"},', '"generateContentRequest":{"contents":[{}],"model":"models/m"},',
        '"generate_content_request":{"contents":[{}]},', '"content":{"parts":[{"text":"a"}]},',
        '"requests":[{"content":{"a":1}}],', '"embedding":{"values":[]},', '"embeddings":[],', '"totalTokens":3',
        '"model":"models/m",', "[{",
    )
)  # fmt: skip
_check = checks_of((GeminiGenerate(), GeminiGenerateArray(), GeminiEmbed(), GeminiBatchEmbed(), GeminiCountTokens()))

TARGET = Target("gemini", _check, _check, JSON_WORDS + WORDS, ("golden/gemini_*/*.*",))
