// SPDX-License-Identifier: MIT
// Token ids by the implementations that come from npm. Called by reference.py:
//   NODE_PATH=.../node_modules node reference.cjs lenml|tokenizers FOLDER CASES.json OUT.json
// FOLDER holds tokenizer.json and tokenizer_config.json; CASES.json is an array of texts, OUT.json gets an array of arrays of ids.
const fs = require('fs');
const path = require('path');
const [which, folder, casesFile, outFile] = process.argv.slice(2);
const file = (name) => path.join(folder, name);
const read = (name) => JSON.parse(fs.readFileSync(name, 'utf8'));

async function main() {
    const cases = read(casesFile);
    const ids = [];
    if (which === 'lenml') { // JavaScript, a descendant of transformers.js
        const { TokenizerLoader } = require('@lenml/tokenizers');
        const t = TokenizerLoader.fromPreTrained({
            tokenizerJSON: read(file('tokenizer.json')),
            tokenizerConfig: read(file('tokenizer_config.json')),
        });
        for (const text of cases)
            ids.push(Array.from(t.encode(text, { add_special_tokens: false })));
    } else { // Rust, the library whose format tokenizer.json is
        const { Tokenizer } = require('tokenizers');
        const t = Tokenizer.fromFile(file('tokenizer.json'));
        for (const text of cases)
            ids.push((await t.encode(text, null, { addSpecialTokens: false })).getIds());
    }
    fs.writeFileSync(outFile, JSON.stringify(ids));
}

main().catch((e) => {
    console.error(e);
    process.exit(1);
});
