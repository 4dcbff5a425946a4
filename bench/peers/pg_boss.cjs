// pg-boss's own programs. node pg_boss.cjs FOLDER (install | statements N | consume CONCURRENCY N)
'use strict'
const [folder, what, ...words] = process.argv.slice(2)
const load = (name) => require(require.resolve(name, { paths: [folder] }))
const PgBoss = load('pg-boss')
const { tally } = require('./tally.cjs')

const options = (max) => ({
  host: process.env.PGHOST, port: Number(process.env.PGPORT), user: process.env.PGUSER, database: process.env.PGDATABASE, max
})

async function install () {
  const boss = new PgBoss({ ...options(2), schedule: false })
  await boss.start()
  await boss.createQueue('b')
  await boss.stop({ graceful: false })
  console.log('{}')
}

// What it sends to put jobs, to fetch n of them, and to complete them.
async function statements (n) {
  const said = []
  const boss = new PgBoss({ ...options(2), schedule: false, supervise: false, migrate: false })
  await boss.start()
  const db = { executeSql: async (text, values) => { said.push({ text, values }); return { rows: [{ count: '0' }] } } }
  await boss.send('b', { mark: 1 }, { db })
  await boss.insert([{ name: 'b', data: { mark: 1 } }], { db })
  await boss.fetch('b', { batchSize: n, db })
  await boss.complete('b', Array.from({ length: n }, () => '00000000-0000-0000-0000-000000000000'), undefined, { db })
  await boss.stop({ graceful: false })
  const [send, insert, claim, complete] = said
  console.log(JSON.stringify({ send, insert, claim, complete }))
}

// fetch() and complete() in as many loops as it may do things at a time; work() polls every half second at most.
async function consume (concurrency, n) {
  const count = tally()
  const boss = new PgBoss({ ...options(concurrency + 2), schedule: false })
  await boss.start()
  let over = false
  const loop = async () => {
    while (!over) {
      const jobs = await boss.fetch('b', { batchSize: n })
      for (const job of jobs) count.add(job.data)
      if (jobs.length > 0) await boss.complete('b', jobs.map((job) => job.id))
      else await new Promise((resolve) => setTimeout(resolve, 10))
    }
  }
  const loops = Array.from({ length: concurrency }, loop)
  count.untilTold(async () => { over = true; await Promise.all(loops); await boss.stop({ graceful: false }) })
}

({ install, statements, consume })[what](...words.map(Number)).catch((error) => { console.error(error); process.exit(1) })
