// SPDX-License-Identifier: MIT
// The official client against a running server. usage: node test_openai.mjs BASE_URL API_KEY FOLDER_OF_NODE_MODULES
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';

const [baseURL, apiKey, modules] = process.argv.slice(2);
const { default: OpenAI } = createRequire(path.join(modules, 'x.js'))('openai');
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });
const model = (await client.models.list()).data[0].id;
const messages = [{ role: 'user', content: 'Tell me a story about a red kite.' }];
const endless = { '1': -100, '9': -100 }; // no end token

const tests = {
    async models() {
        assert.equal((await client.models.retrieve(model)).id, model);
        await assert.rejects(client.models.retrieve('other'), OpenAI.NotFoundError);
    },
    async chat() {
        const a = await client.chat.completions.create({ model, messages, max_tokens: 20, temperature: 0 });
        assert.equal(a.object, 'chat.completion');
        assert.equal(a.usage.completion_tokens, 20);
        assert.equal(a.choices[0].finish_reason, 'length');
        assert.ok(a.choices[0].message.content.length > 20);
        const next = [...messages, a.choices[0].message, { role: 'user', content: 'And then?' }];
        assert.ok((await client.chat.completions.create({ model, messages: next, max_tokens: 5 })).usage.prompt_tokens > 40);
    },
    async stream() {
        const params = { model, messages, max_tokens: 40, temperature: 0 };
        const whole = await client.chat.completions.create(params);
        let text = '', usage = null, events = 0;
        for await (const e of await client.chat.completions.create({ ...params, stream: true, stream_options: { include_usage: true } })) {
            text += e.choices[0]?.delta?.content ?? '';
            usage = e.usage ?? usage;
            events++;
        }
        assert.equal(text, whole.choices[0].message.content);
        assert.deepEqual(usage, whole.usage);
        assert.ok(events > 3);
        const runner = client.chat.completions.stream(params);
        assert.equal((await runner.finalChatCompletion()).choices[0].message.content, text);
    },
    async stop() {
        const params = { model, messages, max_tokens: 60, temperature: 0 };
        const whole = (await client.chat.completions.create(params)).choices[0].message.content;
        const stop = whole.slice(17, 24);
        const a = await client.chat.completions.create({ ...params, stop: [stop, 'never'] });
        assert.equal(a.choices[0].message.content, whole.slice(0, whole.indexOf(stop)));
        assert.equal(a.choices[0].finish_reason, 'stop');
    },
    async several() {
        const a = await client.chat.completions.create({ model, messages, max_tokens: 15, n: 3, seed: 1, temperature: 1.2 });
        assert.deepEqual(a.choices.map((c) => c.index), [0, 1, 2]);
        assert.ok(new Set(a.choices.map((c) => c.message.content)).size > 1);
    },
    async logprobs() {
        const a = await client.chat.completions.create({ model, messages, max_tokens: 5, temperature: 0, logprobs: true, top_logprobs: 4 });
        const tokens = a.choices[0].logprobs.content;
        assert.equal(tokens.map((t) => t.token).join(''), a.choices[0].message.content);
        assert.ok(tokens.every((t) => t.logprob <= 0 && t.top_logprobs.length === 4 && t.top_logprobs[0].token === t.token));
    },
    async completion() {
        const a = await client.completions.create({ model, prompt: ['Once', 'One day'], max_tokens: 8, temperature: 0 });
        assert.equal(a.choices.length, 2);
        let text = '';
        for await (const e of await client.completions.create({ model, prompt: 'One day', max_tokens: 8, temperature: 0, stream: true }))
            text += e.choices[0].text;
        assert.equal(text, a.choices[1].text);
    },
    async schema() {
        const schema = { type: 'object', properties: { color: { enum: ['red', 'blue'] }, count: { type: 'integer' } },
            required: ['color', 'count'], additionalProperties: false };
        const a = await client.chat.completions.create({ model, messages, max_tokens: 100,
            response_format: { type: 'json_schema', json_schema: { name: 'kite', strict: true, schema } } });
        const kite = JSON.parse(a.choices[0].message.content);
        assert.deepEqual(Object.keys(kite), ['color', 'count']);
        assert.ok(['red', 'blue'].includes(kite.color) && Number.isInteger(kite.count));
    },
    async errors() {
        const bad = (extra) => client.chat.completions.create({ model, messages, max_tokens: 1, ...extra });
        await assert.rejects(bad({ temperature: 9 }), (e) => e instanceof OpenAI.BadRequestError && e.param === 'temperature');
        await assert.rejects(bad({ tools: [{ type: 'function', function: { name: 'f' } }] }),
            (e) => e.status === 400 && e.param === 'tools' && e.code === 'unsupported_parameter');
        await assert.rejects(bad({ model: 'gpt-4o' }), (e) => e instanceof OpenAI.NotFoundError && e.code === 'model_not_found');
        const other = new OpenAI({ baseURL, apiKey: 'a-wrong-key', maxRetries: 0 });
        await assert.rejects(other.models.list(), OpenAI.AuthenticationError);
    },
    async preflight() { // what a browser asks before the client of a page may send its request
        const names = new Set();
        const noting = (url, init) => {
            for (const [name] of new Headers(init.headers))
                names.add(name);
            return fetch(url, init);
        };
        const noted = new OpenAI({ baseURL, apiKey, maxRetries: 0, fetch: noting });
        await noted.chat.completions.create({ model, messages, max_tokens: 1 });
        assert.ok(names.has('x-stainless-lang') && names.has('authorization'), [...names]);
        const answer = await fetch(`${baseURL}/chat/completions`, {
            method: 'OPTIONS',
            headers: {
                Origin: 'https://page.example',
                'Access-Control-Request-Method': 'POST',
                'Access-Control-Request-Headers': [...names].sort().join(','),
            },
        });
        assert.equal(answer.status, 204);
        const allowed = answer.headers.get('access-control-allow-headers').split(',').map((name) => name.trim());
        assert.deepEqual([...names].filter((name) => !allowed.includes(name)), []);
    },
    async abort() {
        const params = { model, messages, max_tokens: 2000, logit_bias: endless };
        for (let i = 0; i < 6; i++) { // more than run at once: an aborted one leaves its place
            const stream = await client.chat.completions.create({ ...params, stream: true });
            for await (const e of stream) {
                if (e.choices[0].delta.content)
                    break; // ends the request
            }
            const c = new AbortController();
            const waiting = client.chat.completions.create(params, { signal: c.signal });
            setTimeout(() => c.abort(), 20);
            await assert.rejects(waiting, OpenAI.APIUserAbortError);
        }
        await client.chat.completions.create({ model, messages, max_tokens: 1 });
    },
};

let failed = 0;
for (const [name, test] of Object.entries(tests)) {
    try {
        await test();
        console.log(`${name}: ok`);
    } catch (e) {
        console.log(`${name}: FAILED: ${e.stack}`);
        failed++;
    }
}
process.exit(failed ? 1 : 0);
