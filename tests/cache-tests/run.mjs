// Runs the public HTTP cache tests against a cache.
//
//   node run.mjs
//
// prints the port of the suite's origin server on the first line, takes the URL of the cache in front of it from standard
// input, runs every test, and prints one JSON object: {test id: {kind, name, result}}, where `result` is true or
// the suite's [error, message].
//
// Two things differ from the suite's own programs. The suite configures its server through the cache, with PUT, which an
// edge does not pass on: here it is done directly. And the suite's server learns from a request header (Req-Num) which
// request of a test it has before it; an edge passes no header of a viewer's on, so the client tells the server, which
// runs in the same process.
import { readFileSync } from 'node:fs'
import http from 'node:http'
import readline from 'node:readline'

import fetch from 'node-fetch'
import * as config from 'http-cache-tests/client/config.mjs'
import { makeCacheTest, testResults } from 'http-cache-tests/client/test.mjs'
import handleConfig from 'http-cache-tests/server/handle-config.mjs'
import handleState from 'http-cache-tests/server/handle-state.mjs'
import handleTest from 'http-cache-tests/server/handle-test.mjs'
import suites from 'http-cache-tests/tests/index.mjs'

const ROUNDS = 3

// The suite's server reports oddities with this; standard output is for the results.
console.log = console.error

// Which request of a test is under way, by the test's uuid.
const underWay = new Map()

const handlers = { config: handleConfig, state: handleState, test: handleTest }
const origin = http.createServer((request, response) => {
  const [kind, ...rest] = new URL(request.url, 'http://origin/').pathname.slice(1).split('/')
  const number = underWay.get(rest[0])
  if (kind === 'test' && number !== undefined) request.headers['req-num'] ??= number
  // Where a test does not choose a type the suite takes one that has a gzip form, and so another Vary than it sent.
  const set = response.setHeader
  response.setHeader = (name, value) => set.call(response, name, value === 'text/plain' ? 'application/octet-stream' : value)
  const handler = handlers[kind]
  if (handler) return handler(rest, request, response)
  response.writeHead(404).end()
})
await new Promise((resolve) => origin.listen(0, '127.0.0.1', resolve))
const direct = `http://127.0.0.1:${origin.address().port}`
process.stdout.write(`${origin.address().port}\n`)

const [cache] = await new Promise((resolve) => readline.createInterface(process.stdin).once('line', (line) => resolve([line.trim()])))

function ask (url, init) {
  const path = url.slice('base:'.length)
  if (!path.startsWith('/test/')) return fetch(direct + path, init)
  const number = init.headers.find(([name]) => name === 'Req-Num')[1]
  underWay.set(path.split(/[/?]/)[2], number)
  return fetch(cache + path, init)
}

config.setFetch(ask)
config.setBaseUrl('base:')
config.setUseBrowserCache(false)

// All at once: most of the time goes by in waiting for answers to become stale. A test that fails and is no exception is
// run again, since its times are short: where a machine stands still for seconds what should be fresh is stale.
const tests = suites.flatMap((suite) => suite.tests).filter((test) => test.browser_only !== true)
const excepted = new Set(
  [...readFileSync(new URL('exceptions.toml', import.meta.url), 'utf8').matchAll(/^ *"([^"]+)",$/gm)].map(([, id]) => id)
)
let left = tests
for (let round = 0; round < ROUNDS && left.length > 0; round++) {
  for (const { id } of left) delete testResults[id]
  // A run changes what it is given.
  await Promise.all(left.map((test) => makeCacheTest(structuredClone(test))))
  left = left.filter(({ id, kind }) => kind !== 'check' && testResults[id] !== true && !excepted.has(id))
}
const report = {}
for (const { id, kind = 'required', name } of tests) report[id] = { kind, name, result: testResults[id] }
process.stdout.write(JSON.stringify(report) + '\n', () => process.exit(0))
