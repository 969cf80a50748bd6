// Turns with node-postgres or postgres.js, until the file MATRIX_STOP exists. See turns.rs. Usage: turns.mjs DRIVER
import { existsSync } from 'node:fs'
import { setTimeout } from 'node:timers/promises'
import pg from 'pg'
import postgres from 'postgres'

const name = process.argv[2]
const kinds = ['write', 'block', 'read']
const insert = 'insert into matrix_turns values ($1, $2)'
const count = 'select count(*)::int n from matrix_turns where driver = $1 and turn = $2'
let closed = 0

async function nodePostgres () {
  const connect = async () => {
    const c = new pg.Client()
    c.on('error', () => {})
    c.on('end', () => closed++)
    await c.connect()
    return c
  }
  let c = await connect()
  const block = async (turn) => {
    await c.query('begin')
    await c.query(insert, [name, turn])
    const done = await c.query('commit')
    if (done.command !== 'COMMIT') throw new Error('the block ended with ' + done.command)
  }
  return {
    write: (turn) => c.query({ name: 'insert', text: insert, values: [name, turn] }),
    block: (turn) => block(turn).catch(async (e) => { if (!closed) await c.query('rollback'); throw e }),
    read: async (last) => (await c.query({ name: 'count', text: count, values: [name, last] })).rows[0].n,
    again: async () => { c = await connect() },
    end: () => c.end(),
  }
}

async function postgresJs () {
  const sql = postgres({ ssl: false, max: 1, onclose: () => closed++ })
  return {
    write: (turn) => sql`insert into matrix_turns values (${name}, ${turn})`,
    block: (turn) => sql.begin((t) => t`insert into matrix_turns values (${name}, ${turn})`),
    read: async (last) => (await sql`select count(*)::int n from matrix_turns where driver = ${name} and turn = ${last}`)[0].n,
    // It connects by itself.
    again: () => {},
    end: () => sql.end(),
  }
}

const driver = await (name === 'node-postgres' ? nodePostgres() : postgresJs())
let last = null
for (let turn = 0; !existsSync(process.env.MATRIX_STOP); turn++) {
  const kind = kinds[turn % 3]
  try {
    const seen = kind === 'read' ? await driver.read(last) : (await driver[kind](turn), last = turn, 1)
    console.log(seen === 1 ? 'ok' : 'missing', turn, kind)
  } catch (e) {
    console.log('error', turn, kind, e.code ?? '-', e.message)
  }
  if (closed) {
    console.log('closed', turn)
    closed = 0
    await driver.again()
  }
  await setTimeout(20)
}
await driver.end()
