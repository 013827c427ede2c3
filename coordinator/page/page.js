// SPDX-License-Identifier: MIT
// The page at `/`: a chat on /v1/chat/completions and, beside it, what /v1/stats says, twice a second while somebody looks. All text
// is set as text: nothing that a model or a file name contains becomes markup.
'use strict';

const $ = (id) => document.getElementById(id);
const messages = []; // {role, content, note}
let running = null; // AbortController of the answer that comes

function element(tag, className, text) {
    const e = document.createElement(tag);
    if (className) e.className = className;
    if (text !== undefined) e.textContent = text;
    return e;
}

function headers() {
    const key = $('key').value.trim();
    return { 'Content-Type': 'application/json', ...(key ? { Authorization: `Bearer ${key}` } : {}) };
}

async function reason(response) {
    const text = await response.text();
    try {
        return JSON.parse(text).error.message;
    } catch {
        return `status ${response.status}`;
    }
}

// ---- chat

function draw(message) {
    const article = element('article', `message ${message.role}`);
    article.append(element('h3', '', message.role === 'user' ? 'You' : $('model').textContent || 'Answer'));
    message.view = element('p', '', message.content);
    message.foot = element('small', '', message.note || '');
    article.append(message.view, message.foot);
    $('log').append(article);
    message.article = article;
    bottom();
    return message;
}

function bottom() {
    $('log').scrollTop = $('log').scrollHeight;
}

// While an answer comes, who has scrolled up to read stays there.
function follow(change) {
    const log = $('log');
    const there = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
    change();
    if (there) bottom();
}

function buttons() {
    const last = messages[messages.length - 1];
    $('send').disabled = running !== null;
    $('stop').disabled = running === null;
    $('again').disabled = running !== null || !last || last.role !== 'assistant';
    $('clear').disabled = running !== null || !last;
}

function notice(text) {
    $('notice').hidden = !text;
    $('notice').textContent = text || '';
}

function number(id) {
    const value = $(id).value.trim();
    return value === '' ? undefined : Number(value);
}

function request() {
    const system = $('system').value.trim();
    const body = { stream: true, stream_options: { include_usage: true }, messages: [] };
    for (const id of ['temperature', 'top_p', 'top_k', 'min_p', 'repetition_penalty', 'max_tokens', 'seed'])
        if (number(id) !== undefined) body[id] = number(id);
    if (system) body.messages.push({ role: 'system', content: system });
    for (const m of messages) body.messages.push({ role: m.role, content: m.content });
    return JSON.stringify(body);
}

async function* events(response) {
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let text = '';
    for (;;) {
        const { value, done } = await reader.read();
        if (done) return;
        text += value;
        const parts = text.split('\n\n');
        text = parts.pop();
        for (const part of parts)
            if (part.startsWith('data: {')) yield JSON.parse(part.slice(6));
    }
}

function summary(m, usage, began, first) {
    const cached = usage.prompt_tokens_details.cached_tokens;
    const seconds = (performance.now() - first) / 1000;
    const words = [`${usage.prompt_tokens} prompt tokens${cached ? ` (${cached} kept from before)` : ''}`,
        `${usage.completion_tokens} generated`, `first after ${((first - began) / 1000).toFixed(2)} s`];
    if (usage.completion_tokens > 1 && seconds > 0) words.push(`${((usage.completion_tokens - 1) / seconds).toFixed(1)} tokens/s`);
    if (m.finish === 'length') words.push('cut at its length');
    if (m.changed) words.push('a stage went on with another backend meanwhile');
    return words.join(' · ');
}

async function answer() {
    const body = request();
    const m = draw({ role: 'assistant', content: '' });
    const began = performance.now();
    let first = 0;
    running = new AbortController();
    notice('');
    buttons();
    try {
        const response = await fetch('v1/chat/completions', { method: 'POST', headers: headers(), body, signal: running.signal });
        if (!response.ok) throw new Error(await reason(response));
        for await (const e of events(response)) {
            if (e.error) throw new Error(e.error.message);
            const c = e.choices[0];
            if (c && c.delta.content) {
                first = first || performance.now();
                m.content += c.delta.content;
                follow(() => { m.view.textContent = m.content; });
            }
            if (c && c.finish_reason) m.finish = c.finish_reason;
            if (c && c.numerics_changed) m.changed = true;
            if (e.usage) follow(() => { m.foot.textContent = summary(m, e.usage, began, first || performance.now()); });
        }
    } catch (e) {
        if (e.name === 'AbortError') m.foot.textContent = 'stopped';
        else notice(e.message);
    }
    running = null;
    if (m.content) messages.push(m);
    else m.article.remove();
    buttons();
}

function send() {
    const text = $('text').value.trim();
    const last = messages[messages.length - 1];
    if (running) return;
    if (text && last && last.role === 'user') { // its answer failed: it is said anew
        last.article.remove();
        messages.pop();
    } else if (!text && !(last && last.role === 'user')) {
        return;
    }
    if (text) messages.push(draw({ role: 'user', content: text }));
    $('text').value = '';
    answer();
}

$('form').addEventListener('submit', (e) => {
    e.preventDefault();
    send();
});
$('text').addEventListener('keydown', (e) => {
    if (e.key !== 'Enter' || e.shiftKey || e.isComposing) return;
    e.preventDefault();
    send();
});
document.addEventListener('keydown', (e) => {
    if (e.key === 'Escape' && running) running.abort();
});
$('stop').addEventListener('click', () => running && running.abort());
$('again').addEventListener('click', () => {
    messages.pop().article.remove();
    answer();
});
$('clear').addEventListener('click', () => {
    messages.length = 0;
    $('log').replaceChildren();
    notice('');
    buttons();
    $('text').focus();
});

// ---- pipeline

const CATEGORIES = ['weights', 'kv', 'scratch', 'ring', 'device'];
const STATES = { running: 'good', starting: 'warn', recovering: 'warn', failed: 'bad' };
const views = new Map(); // of processes and rings, by name
const before = new Map(); // restarts of each process; the state
const history = new Array(120).fill(0);

function size(bytes) {
    const units = ['B', 'KiB', 'MiB', 'GiB', 'TiB'];
    let i = 0;
    for (; bytes >= 1024 && i < units.length - 1; i++) bytes /= 1024;
    return `${bytes < 10 && i ? bytes.toFixed(1) : Math.round(bytes)} ${units[i]}`;
}

function rate(perSecond) {
    return perSecond.toFixed(perSecond >= 10 || perSecond <= 0 ? 1 : perSecond >= 1 ? 2 : 3);
}

function bar(kinds) {
    const e = element('div', 'bar');
    e.setAttribute('role', 'meter');
    e.setAttribute('aria-valuemin', 0);
    for (const kind of kinds) e.append(element('span', kind));
    return e;
}

function set(e, label, most, values) {
    const sum = values.reduce((a, b) => a + b, 0);
    e.setAttribute('aria-label', label);
    e.setAttribute('aria-valuemax', most);
    e.setAttribute('aria-valuenow', Math.min(sum, most));
    values.forEach((v, i) => {
        e.children[i].style.width = `${most ? Math.min(100, 100 * v / most) : 0}%`;
    });
}

function processView(name) {
    const v = { li: element('li'), name: element('b', '', name), state: element('span'), bar: bar([...CATEGORIES, 'other']),
        memory: element('div', 'dim'), work: element('div', 'dim') };
    const head = element('div', 'head');
    v.li.id = `process-${name}`;
    head.append(v.name, v.state);
    v.li.append(head, v.bar, v.memory, v.work);
    $('processes').append(v.li);
    views.set(name, v);
    return v;
}

function showProcess(p, state) {
    const v = views.get(p.name) || processView(p.name);
    const categories = CATEGORIES.map((c) => p.budget[c]);
    const sum = categories.reduce((a, b) => a + b, 0);
    const used = p.usage_bytes || p.private_bytes + p.budget[p.name === 'coordinator' ? 'ring' : 'weights'];
    const word = !p.pid ? 'down' : !p.answered ? (state === 'starting' ? 'starting' : 'silent')
        : p.working ? `at work, layer ${p.layer}` : 'waits';
    v.state.textContent = word;
    v.state.className = p.pid && p.answered ? 'good' : 'warn';
    set(v.bar, `Memory of ${p.name} against its cap`, Math.max(p.cap_bytes, sum), [...categories, Math.max(0, used - sum)]);
    v.memory.textContent = `${size(Math.max(used, sum))} of ${size(p.cap_bytes)} (${p.cap_enforced ? 'kernel' : 'watched'}): ` +
        CATEGORIES.filter((c) => p.budget[c]).map((c) => `${c} ${size(p.budget[c])}`).join(', ');
    v.work.textContent = [p.backend === '-' ? '' : p.backend, p.pid && `pid ${p.pid}`].filter(Boolean).join(', ') +
        (p.restarts ? `, started again ${p.restarts === 1 ? 'once' : `${p.restarts} times`}` : '') +
        (p.stream_visits ? `, ${Math.round(100 * p.stream_hits / p.stream_visits)}% of streamed layers were there in time` : '');
    const known = before.get(p.name);
    if (known !== undefined && p.restarts > known) event(`${p.name} is started again: ${p.last_reason}`);
    before.set(p.name, p.restarts);
}

function showQuantizer() {
    const li = element('li', 'dim', 'quantizer: makes model files; it does not run while they are used');
    li.id = 'process-quantizer';
    $('processes').append(li);
}

function showRing(r) {
    let v = views.get(`ring ${r.name}`);
    if (!v) {
        v = { li: element('li'), bar: bar(['ring']), count: element('span') };
        v.li.append(element('span', '', r.name), v.bar, v.count);
        $('rings').append(v.li);
        views.set(`ring ${r.name}`, v);
    }
    set(v.bar, `Ring ${r.name}`, r.slots, [r.fill]);
    v.count.textContent = `${r.fill}/${r.slots}`;
}

function event(text) {
    $('events').prepend(element('li', '', `${new Date().toLocaleTimeString()} ${text}`));
    while ($('events').children.length > 50) $('events').lastChild.remove();
}

function showState(state) {
    if (before.has('state') && before.get('state') !== state) event(`the pipeline is ${state}`);
    before.set('state', state);
    $('state').textContent = state;
    $('state').className = `pill ${STATES[state] || 'bad'}`;
}

function show(s) {
    showState(s.state);
    $('model').textContent = s.model;
    $('out-rate').textContent = rate(s.tokens.output_per_second);
    $('in-rate').textContent = rate(s.tokens.prompt_per_second);
    $('running').textContent = s.requests.running;
    $('queued').textContent = s.requests.queued;
    $('kv').textContent = s.kv.pages ? Math.round(100 * s.kv.pages_used / s.kv.pages) : 0;
    history.shift();
    history.push(s.tokens.output_per_second);
    const most = Math.max(1, ...history);
    $('line').setAttribute('points', history.map((v, i) => `${i},${(29 - 28 * v / most).toFixed(1)}`).join(' '));
    s.processes.forEach((p) => showProcess(p, s.state));
    if (!$('process-quantizer')) showQuantizer();
    s.rings.forEach(showRing);
}

async function look() {
    try {
        if (document.visibilityState === 'visible') {
            const response = await fetch('v1/stats', { headers: headers() });
            if (response.ok) show(await response.json());
            else showState(response.status === 401 ? 'API key needed' : 'not ready');
        }
    } catch {
        showState('not reachable');
    }
    setTimeout(look, 500);
}

if (matchMedia('(max-width: 50rem)').matches) $('panel').open = false;
buttons();
look();
