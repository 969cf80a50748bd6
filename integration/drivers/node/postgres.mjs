// The common script with postgres.js. Connects as the environment says.
import postgres from 'postgres'
import { pipeline } from 'node:stream/promises'
import { Readable } from 'node:stream'
import { readFileSync } from 'node:fs'

const say = (step, value) => console.log(JSON.stringify([step, value]))
const notices = []
const sql = postgres({ ssl: process.env.PGSSLMODE === 'disable' ? false : process.env.PGSSLMODE, max: 4, onnotice: (n) => notices.push([n.severity, n.code, n.message]) })
const failing = (step, run) => run().then(() => say(step, 'no error'), (e) => say(step, [e.code, e.message]))

const manifest = new URL('./node_modules/postgres/package.json', import.meta.url)
say('version', JSON.parse(readFileSync(manifest)).version)
await sql`drop table if exists matrix_postgresjs`
await sql`create table matrix_postgresjs(id int primary key, word text)`
await sql`insert into matrix_postgresjs ${sql(Array.from({ length: 20 }, (_, id) => ({ id, word: `wörd ${id}` })))}`
say('rows', await sql`select * from matrix_postgresjs order by id limit 3`)
say('types', await sql`select 1::int2 a, 2::int8 b, 1.5::float8 c, true d, null e, array[1,2] f, '{"a":1}'::jsonb g, ${'q\'"'}::text h`)
for (let i = 0; i < 5; i++) say('prepared', await sql`select word from matrix_postgresjs where id = ${i}`)
say('several', await sql`select 1 a; select 2 b`.simple())
await failing('unique', () => sql`insert into matrix_postgresjs values (1)`)
await failing('syntax', () => sql`selec 1`)
await failing('table', () => sql`select * from no_such_table`)
await failing('division', () => sql`select 1/${0}::int`)
await failing('a transaction', () => sql.begin(async (t) => {
  await t`update matrix_postgresjs set word = 'changed' where id = 3`
  await t.savepoint((s) => s`select 1/0`).catch((e) => say('within', e.code))
  say('after the savepoint', await t`select 1 a`)
  throw Object.assign(new Error('rolled back'), { code: 'own' })
}))
say('rolled back', await sql`select word from matrix_postgresjs where id = 3`)
const portions = []
await sql`select id from matrix_postgresjs order by id`.cursor(6, (rows) => { portions.push(rows.length) })
say('cursor', portions)
const lines = Array.from({ length: 2000 }, (_, i) => `${i + 100}\tcopied\n`)
await pipeline(Readable.from(lines), await sql`copy matrix_postgresjs from stdin`.writable())
let bytes = 0
for await (const part of await sql`copy (select id from matrix_postgresjs where id >= 100) to stdout`.readable()) bytes += part.length
say('copied', bytes)
say('pipelined', (await Promise.all(Array.from({ length: 50 }, (_, i) => sql`select ${i}::int n`))).map((r) => r[0].n))
const own = await sql.reserve()
await own`set timezone = 'Asia/Tokyo'`
say('show', await own`show timezone`)
await own`reset timezone`
await own`create temp table mine(x int)`
await own`insert into mine values (1), (2)`
say('temp', await own`select sum(x) from mine`)
own.release()
say('large', await sql`select md5(${'b'.repeat(3_000_000)}::text) a`)
say('large result', (await sql`select repeat('r', 5000000) a`)[0].a.length)
notices.length = 0
await sql`do $$ begin raise notice 'hello'; end $$`.simple()
say('notices', notices)
const came = Promise.withResolvers?.() ?? (() => { const d = {}; d.promise = new Promise((r) => { d.resolve = r }); return d })()
const listening = await sql.listen('tidings', came.resolve)
await sql.notify('tidings', 'news')
say('notification', await came.promise)
await listening.unlisten()
const slow = sql`select pg_sleep(60)`
setTimeout(() => slow.cancel(), 500)
await failing('cancel', () => slow)
const sharers = [await sql.reserve(), await sql.reserve()]
const shared = (one) => one`select * from matrix_postgresjs where id = ${1}`
for (const one of sharers) say('shared', await shared(one))
await sql`alter table matrix_postgresjs add another int default 5`
for (const one of [...sharers, ...sharers]) await shared(one).then((rows) => say('altered', rows), (e) => say('altered', [e.code, e.message]))
sharers.forEach((one) => one.release())
await sql`drop table matrix_postgresjs`
await sql.end()
