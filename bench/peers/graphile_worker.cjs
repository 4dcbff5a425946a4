// graphile-worker's own programs. node graphile_worker.cjs FOLDER (install | statements N | consume CONCURRENCY N)
'use strict'
const [folder, what, ...words] = process.argv.slice(2)
const load = (name) => require(require.resolve(name, { paths: [folder] }))
const { makeWorkerUtils, run, Logger } = load('graphile-worker')
const { Pool } = load('pg')
const { tally } = require('./tally.cjs')
const logger = new Logger(() => () => {})

const worker = (n, concurrency) => ({
  concurrentJobs: concurrency,
  pollInterval: 2000,
  maxPoolSize: concurrency + 4,
  // With n > 1 it fetches n jobs at a time, and completes what is done within a millisecond together.
  ...(n > 1 ? { localQueue: { size: n }, completeJobBatchDelay: 1 } : {})
})

async function install () {
  const utils = await makeWorkerUtils({ logger })
  await utils.migrate()
  await utils.addJob('bench', {})
  await utils.withPgClient((client) => client.query('delete from graphile_worker._private_jobs'))
  await utils.release()
  console.log('{}')
}

// What it sends to fetch n jobs and to complete them.
async function statements (n) {
  const said = []
  const pool = new Pool({ max: n + 4 })
  pool.on('connect', (client) => {
    const query = client.query.bind(client)
    client.query = (config, ...rest) => {
      const text = typeof config === 'string' ? config : config?.text
      if (text) said.push({ text, values: config.values ?? (Array.isArray(rest[0]) ? rest[0] : []) })
      return query(config, ...rest)
    }
  })
  const utils = await makeWorkerUtils({ pgPool: pool, logger })
  await utils.addJobs(Array.from({ length: 2 * n }, () => ({ identifier: 'bench', payload: {} })))
  await utils.release()
  let done = 0
  const runner = await run({
    logger, pgPool: pool, noHandleSignals: true, preset: { worker: worker(n, Math.max(2, n)) },
    taskList: { bench: async () => { done++ } }
  })
  for (let i = 0; i < 200 && done < 2 * n; i++) await new Promise((resolve) => setTimeout(resolve, 25))
  await new Promise((resolve) => setTimeout(resolve, 100))
  await runner.stop()
  await pool.end()
  const claim = said.find((one) => /for update\s+skip locked/.test(one.text) && new RegExp(`limit ${n}\\b`).test(one.text))
  const several = (one) => one.values.length === 1 && Array.isArray(one.values[0]) === n > 1
  const complete = said.find((one) => /^\s*delete from .*_private_jobs/.test(one.text) && several(one))
  console.log(JSON.stringify({ claim, complete }))
}

async function consume (concurrency, n) {
  const count = tally()
  const runner = await run({
    logger, noHandleSignals: true, preset: { worker: worker(n, concurrency) },
    taskList: { bench: async (payload) => { count.add(payload) } }
  })
  count.untilTold(() => runner.stop())
}

({ install, statements, consume })[what](...words.map(Number)).catch((error) => { console.error(error); process.exit(1) })
