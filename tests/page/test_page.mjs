// SPDX-License-Identifier: MIT
// The page at `/` in Debian's chromium, by keyboard alone. node test_page.mjs URL FOLDER-OF-NODE_MODULES FOLDER-FOR-PICTURES [KEY]
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';

const [url, modules, pictures, key] = process.argv.slice(2);
const { chromium } = createRequire(path.join(modules, 'package.json'))('playwright-core');
const browser = await chromium.launch({ executablePath: '/usr/bin/chromium', args: ['--no-sandbox'] });
const complaints = [];
const stats = async () => (await fetch(`${url}/v1/stats`)).json();

async function open(options) {
    const context = await browser.newContext(options);
    const page = await context.newPage();
    page.setDefaultTimeout(60000);
    page.on('pageerror', (e) => complaints.push(`error: ${e.message}`));
    page.on('console', (m) => ['error', 'warning'].includes(m.type()) && complaints.push(`console: ${m.text()}`));
    page.on('request', (r) => r.url().startsWith(`${url}/`) || r.url().startsWith('data:') || complaints.push(`request: ${r.url()}`));
    const response = await page.goto(`${url}/`);
    assert.match(response.headers()['content-security-policy'], /^default-src 'none'; script-src 'self'; style-src 'self';/);
    return page;
}

const set = (page, id, value) => page.evaluate(([i, v]) => { document.getElementById(i).value = v; }, [id, String(value)]);
const picture = (page, name, more) => page.screenshot({ path: path.join(pictures, `${name}.png`), ...more });
const idle = (page) => page.waitForFunction(() => document.getElementById('stop').disabled);
const answers = (page) => page.locator('.assistant p').allTextContents();

async function say(page, text) {
    await page.focus('#text');
    await page.keyboard.type(text);
    await page.keyboard.press('Enter');
}

// What a client gets that asks for the same.
async function expected(messages, params) {
    const body = { messages, temperature: 1, top_p: 0.95, top_k: 64, min_p: 0, repetition_penalty: 1, ...params };
    const r = await fetch(`${url}/v1/chat/completions`,
        { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) });
    const j = await r.json();
    assert.equal(r.status, 200, JSON.stringify(j));
    return j.choices[0].message.content;
}

async function chat() {
    const page = await open({ viewport: { width: 1280, height: 860 }, colorScheme: 'light' });
    await page.waitForSelector('#state.good');
    assert.deepEqual(await page.locator('#processes b').allTextContents(), ['coordinator', 'loader', 'npu_worker', 'gpu_worker']);
    assert.equal(await page.locator('#processes li').count(), 5);
    assert.equal(await page.locator('#rings li').count(), 5);
    assert.match(await page.textContent('#process-gpu_worker'), /weights/);
    assert.equal(await page.locator('#process-loader [role=meter]').getAttribute('aria-valuemax'),
        String((await stats()).processes[1].cap_bytes));

    await set(page, 'temperature', 0);
    const first = [{ role: 'user', content: 'Tell me a story about a red kite.' }];
    const one = await expected(first, { temperature: 0 });
    await say(page, first[0].content);
    await idle(page);
    assert.deepEqual(await answers(page), [one]);
    assert.match(await page.textContent('.assistant small'), /prompt tokens .*generated .* tokens\/s/);
    const second = [...first, { role: 'assistant', content: one }, { role: 'user', content: '<img src=x onerror=alert(1)> & a cat' }];
    await say(page, second[2].content);
    await idle(page);
    assert.deepEqual(await answers(page), [one, await expected(second, { temperature: 0 })]);
    assert.equal(await page.locator('#log img').count(), 0, 'text is text');
    assert.match(await page.locator('.assistant small').last().textContent(), /kept from before/);

    await page.focus('#again');
    await page.keyboard.press('Enter');
    await page.waitForFunction(() => document.querySelectorAll('.assistant').length === 2);
    await idle(page);
    assert.deepEqual(await answers(page), [one, await expected(second, { temperature: 0 })], 'regenerated');
    await page.waitForFunction(() => document.getElementById('running').textContent === '0');
    await picture(page, 'chat-light');
    await page.click('#clear');
    assert.equal(await page.locator('.message').count(), 0);
    await page.context().close();
}

// Hot enough never to come to an end by itself.
const HOT = { temperature: 2, top_k: 0, top_p: 1, repetition_penalty: 1.3, max_tokens: 1500, seed: 6 };

async function stopAndKill() {
    const page = await open({ viewport: { width: 1280, height: 860 }, colorScheme: 'dark' });
    await page.waitForSelector('#state.good');
    for (const [id, value] of Object.entries(HOT)) await set(page, id, value);
    const messages = [{ role: 'user', content: 'Anything.' }];
    const want = await expected(messages, HOT);
    assert.ok(want.length > 1000, want);
    let part = want;
    for (let i = 0; part === want; i++) { // a fast machine may be at the end before the key is pressed
        assert.ok(i < 30, 'stopped in the middle');
        if (i) await page.click('#clear');
        await say(page, 'Anything.');
        await page.waitForFunction(() => document.querySelector('.assistant p')?.textContent.length > 20);
        await page.keyboard.press('Escape');
        await idle(page);
        [part] = await answers(page);
    }
    assert.ok(want.startsWith(part), 'another text');
    assert.equal(await page.textContent('.assistant small'), 'stopped');
    for (let i = 0; (await stats()).requests.running; i++) assert.ok(i < 1000, 'the sequence is free');

    for (const victim of ['npu_worker', 'gpu_worker', 'loader']) {
        await page.click('#clear');
        const { pid } = (await stats()).processes.find((p) => p.name === victim);
        await say(page, 'Anything.');
        await page.waitForFunction(() => document.querySelector('.assistant p')?.textContent.length > 100);
        process.kill(pid, 'SIGKILL');
        await page.waitForFunction((v) => document.getElementById('events').textContent.includes(`${v} is started again: `), victim);
        await idle(page);
        assert.deepEqual(await answers(page), [want], `the text goes on without ${victim}`);
        assert.ok(await page.isHidden('#notice'));
    }
    await page.waitForSelector('#state.good');
    await picture(page, 'recovery-dark');
    await page.context().close();
}

async function phone() {
    for (const colorScheme of ['light', 'dark']) {
        const page = await open({ viewport: { width: 360, height: 740 }, hasTouch: true, isMobile: true, colorScheme });
        await page.waitForSelector('#state.good');
        await set(page, 'max_tokens', 30);
        await say(page, 'Hello');
        await idle(page);
        assert.ok(!await page.isVisible('#processes'), 'folded');
        await picture(page, `phone-${colorScheme}`);
        await page.focus('#panel summary');
        await page.keyboard.press('Enter');
        await page.waitForSelector('#process-npu_worker', { state: 'visible' });
        assert.ok(await page.evaluate(() => document.documentElement.scrollWidth <= window.innerWidth), 'nothing sticks out');
        await picture(page, `phone-pipeline-${colorScheme}`, { fullPage: true });
        await page.context().close();
    }
}

async function withKey() {
    const page = await open({ viewport: { width: 1000, height: 700 } });
    await page.waitForFunction(() => document.getElementById('state').textContent === 'API key needed');
    await say(page, 'Hello');
    await page.waitForFunction(() => document.getElementById('notice').textContent.includes('API key'));
    assert.equal(await page.locator('.assistant').count(), 0);
    complaints.length = 0; // the browser names every 401
    await set(page, 'max_tokens', 5);
    await set(page, 'key', key);
    await page.waitForSelector('#state.good');
    await page.focus('#text');
    await page.keyboard.press('Enter'); // the message that failed, again
    await idle(page);
    assert.equal(await page.locator('.assistant').count(), 1);
    complaints.splice(0, complaints.length, ...complaints.filter((c) => !c.includes('401')));
    await page.context().close();
}

for (const test of key ? [withKey] : [chat, stopAndKill, phone]) {
    await test();
    console.log(`${test.name}: ok`);
}
await browser.close();
assert.deepEqual(complaints, []);
