// The common script with node-postgres. Connects as the environment says.
import pg from 'pg'
import Cursor from 'pg-cursor'
import copy from 'pg-copy-streams'
import { once } from 'node:events'
import { createRequire } from 'node:module'

const where = { ssl: false }
const say = (step, value) => console.log(JSON.stringify([step, value]))
const client = new pg.Client(where)
const ask = async (step, ...query) => {
  const r = await client.query(...query)
  say(step, Array.isArray(r) ? r.map((x) => [x.command, x.rows]) : [r.command, r.rowCount, r.rows])
}
const failing = (step, run) => run().then(() => say(step, 'no error'), (e) => say(step, [e.code, e.message]))

say('version', createRequire(import.meta.url)('pg/package.json').version)
await client.connect()
await client.query('drop table if exists matrix_pg; create table matrix_pg(id int primary key, word text)')
for (let i = 0; i < 20; i++) await client.query('insert into matrix_pg values ($1, $2)', [i, `wörd ${i}`])
await ask('rows', 'select * from matrix_pg order by id limit 3')
await ask('types', "select 1::int2 a, 2::int8 b, 1.5::float8 c, true d, null e, array[1,2] f, '{\"a\":1}'::jsonb g, $1::text h", ['q\'"'])
for (let i = 0; i < 5; i++) await ask('prepared', { name: 'by-id', text: 'select word from matrix_pg where id = $1', values: [i] })
await ask('binary', { text: 'select 7::int4 a, 2.25::float8 b', values: [], binary: true })
await ask('several', 'select 1 a; select 2 b; select 3 c')
await failing('unique', () => client.query('insert into matrix_pg values (1)'))
await failing('syntax', () => client.query('selec 1'))
await failing('table', () => client.query('select * from no_such_table where $1', [true]))
await failing('division', () => client.query('select 1/$1::int', [0]))
await client.query('begin')
await client.query("update matrix_pg set word = 'changed' where id = 3")
await client.query('savepoint s')
await failing('within', () => client.query('select 1/0'))
await failing('aborted', () => client.query('select 1'))
await client.query('rollback to s')
await ask('after the savepoint', 'select 1 a')
await client.query('rollback')
await ask('rolled back', 'select word from matrix_pg where id = 3')
await client.query('begin')
const cursor = client.query(new Cursor('select id from matrix_pg order by id'))
say('cursor', [await cursor.read(6), (await cursor.read(100)).length])
await cursor.close()
await client.query('commit')
const into = client.query(copy.from('copy matrix_pg from stdin'))
for (let i = 100; i < 2100; i++) into.write(`${i}\tcopied\n`)
into.end()
await once(into, 'finish')
let bytes = 0
for await (const part of client.query(copy.to('copy (select id from matrix_pg where id >= 100) to stdout'))) bytes += part.length
say('copied', bytes)
say('queued', (await Promise.all(Array.from({ length: 20 }, (_, i) => client.query('select $1::int n', [i])))).map((r) => r.rows[0].n))
await ask('set', "set timezone = 'Asia/Tokyo'")
await ask('show', 'show timezone')
await client.query('reset timezone')
await client.query('create temp table mine(x int)')
await client.query('insert into mine values (1), (2)')
await ask('temp', 'select sum(x) from mine')
for (const f of ['lock', 'unlock', 'unlock']) await ask(f, `select pg_advisory_${f}(79)::text a`)
await ask('large', 'select md5($1::text) a', ['b'.repeat(3_000_000)])
say('large result', (await client.query("select repeat('r', 5000000) a")).rows[0].a.length)
const notices = []
client.on('notice', (n) => notices.push([n.severity, n.code, n.message]))
await client.query("do $$ begin raise notice 'hello'; raise warning 'careful'; end $$")
say('notices', notices)
await client.query('listen tidings')
const came = once(client, 'notification')
await client.query("notify tidings, 'news'")
const [note] = await came
say('notification', [note.channel, note.payload])
await client.query('unlisten *')
await client.query("set statement_timeout = '50ms'")
await failing('timeout', () => client.query('select pg_sleep(60)'))
await client.query('reset statement_timeout')
const pool = new pg.Pool({ ...where, max: 5 })
say('pool', (await Promise.all(Array.from({ length: 20 }, (_, i) => pool.query('select $1::int n', [i])))).map((r) => r.rows[0].n))
await pool.end()
await client.query('drop table matrix_pg')
await client.end()
