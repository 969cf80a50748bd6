'use strict';
// What the operators' page shows: the answers of a process as trees of plain objects. page.js asks and draws.

// ---- The recent past

/** Take an answer to `/lag` into the past. Who is not in it is no standby any more. */
function remember(past, answer, at) {
  const next = new Map();
  for (const standby of list(answer, 'standbys')) {
    const [node, ms, unknown] = pick(standby, 'node', 'replay_lag_ms', 'unknown');
    const points = (past.get(node) ?? []).filter((point) => at - point.at <= SPAN_MS);
    next.set(node, [...points, { at, ms: unknown === null ? ms : null }]);
  }
  return next;
}

/** A lagmon's own memory, of an answer to `/lag/history`. */
function recalled(answer, at) {
  const point = (of) => {
    const [age, most, unknown] = pick(of, 'age_ms', 'max_ms', 'unknown');
    return { at: at - age, ms: unknown ? null : most };
  };
  return new Map(list(answer, 'standbys').map((line) => [pick(line, 'node')[0], list(line, 'points').map(point)]));
}

// ---- The cluster, by a manager

/** Would losing the primary now be safe? Only a leader's answer of now may say so. */
function verdictOf(status, age) {
  const [leading, safety, read] = pick(status, 'leading', 'safe_to_lose_primary', 'records_ms_ago');
  const [safe, promised] = pick(safety, 'safe', 'as_promised');
  const why = list(safety, 'why');
  const doubt = (word, ...more) => ({ mark: '?', word, kind: 'doubt', why: [...more, ...why] });
  const old = age + (read ?? 0);
  if (leading !== true) return doubt('not known here');
  if (typeof safe !== 'boolean') return doubt('not known');
  if (old > STALE_MS) return doubt('not known', `as of ${duration(old)} ago: ${safe ? 'safe' : 'not safe'}`);
  if (safe) return { mark: '✔', word: 'safe', kind: 'good', why };
  return { mark: '✖', word: 'NOT SAFE', kind: 'bad', why: promised ? ['what the mode promises would be kept', ...why] : why };
}

/** Where an operator finds the leader; `null` when that is no address. */
function pageAt(admin) {
  return /^[\w.:[\]-]+:\d+$/.test(admin ?? '') ? `http://${admin}/` : null;
}

function leaderOf(status) {
  const [cluster, leading, leader, read] = pick(status, 'cluster', 'leading', 'leader', 'records_ms_ago');
  const [id, admin] = pick(leader, 'id', 'admin');
  if (leading) return 'this process';
  if (leader === null) return read === null ? UNKNOWN : 'NONE LEADS';
  const at = pageAt(admin);
  // The first cluster of that one may be another.
  const href = `${at}?cluster=${encodeURIComponent(known(cluster))}`;
  return [at === null ? known(admin) : h('a', { href }, admin), ` (${id})`];
}

/** What a commit waits for. */
function policyWords(policy) {
  if (policy === null) return UNKNOWN;
  const [mode, voters, k, limits] = pick(policy, 'mode', 'voters', 'k', 'limits');
  const [loss, time] = pick(limits, 'max_loss_bytes', 'max_ms');
  const names = (of) => (of ?? []).join(', ');
  const who = mode === 'async' ? 'commits that ask for it' : 'commits';
  const words = [`${who} wait for ${known(k)} of the standbys among ${names(voters)}`];
  if (mode === 'available') words.push(`without them unprotected for ${bytes(loss)} and ${duration(time)}`);
  const joint = maybe(policy, 'joint');
  if (joint !== null) {
    const [to, more] = pick(joint, 'voters', 'k');
    words.push(`being changed to ${more} of ${names(to)}`);
  }
  return words.join('; ');
}

/** PostgreSQL of the primary, as its agent tells; null when that is not known. */
function primaryState(status) {
  const [primary] = pick(status, 'primary');
  const node = list(status, 'nodes').find((n) => n.node === primary);
  const [reachable, agent] = pick(node, 'agent_reachable', 'agent');
  const [postgres] = pick(reachable ? agent : null, 'postgres');
  return pick(postgres, 'is')[0] === 'primary' ? postgres : null;
}

function verdictSection(answer) {
  const status = answer.body;
  const [cluster, term, phase, primary, mode, policy, suspended, paused, read] =
    pick(status, 'cluster', 'term', 'phase', 'primary', 'mode', 'policy', 'suspended', 'paused', 'records_ms_ago');
  const { mark, word, kind, why } = verdictOf(status, answer.age);
  const [since, sinceTerm, sinceWall, sinceWhy] = pick(suspended, 'since', 'term', 'since_wall', 'why');
  const [by, pauseWhy, at, end] = pick(paused, 'by', 'why', 'at', 'until');
  const state = primaryState(status);
  const [names] = pick(state, 'sync_names');
  const impostors = list(state, 'impostors');
  const outdated = list(status, 'outdated_etcd');
  return section(`Cluster ${known(cluster)}`, answer,
    h('p', { class: `verdict ${kind}`, role: 'status' }, `Losing the primary now: ${mark} ${word}`),
    bullets(why),
    suspended !== null && alarm(`UNPROTECTED since ${since} (term ${sinceTerm}, ${utc(sinceWall)})${because(sinceWhy)}`),
    paused !== null && alarm(`PAUSED by ${by} since ${utc(at)}${until(end)}${because(pauseWhy)}; nothing changes by itself`),
    impostors.length > 0 && alarm(`commits are confirmed in the name of a standby by who is not it: ${impostors.join(', ')}`),
    outdated.length > 0 && alarm(`etcd with known lease bugs: ${outdated.join(', ')}`),
    facts([
      ['term', known(term)], ['phase', known(phase)], ['primary', known(primary)], ['mode', known(mode)],
      ['leading manager', leaderOf(status)], ['the managers', list(status, 'verdict_text').join('; ') || UNKNOWN],
      ['who confirms commits', policyWords(policy)],
      ['synchronous_standby_names in force', names === '' ? 'empty: none waits' : known(names)],
      ['etcd read', ago(read, answer.age)],
    ]));
}

/** Does it confirm commits to the primary, and up to where? */
function confirms(node, isPrimary, state) {
  if (isPrimary) return NONE;
  if (state === null) return UNKNOWN;
  const rows = list(state, 'followers').map((f) => pick(f, 'node', 'state', 'flush_lsn', 'sync_state'));
  const found = rows.find(([name]) => name === node);
  if (found === undefined) return 'no: no stream';
  const [, stream, flushed, sync] = found;
  const word = sync === 'quorum' || sync === 'sync' ? 'yes' : 'no';
  return `${word} (${[sync, stream === 'streaming' ? null : stream].filter(Boolean).join(', ')}), flushed ${known(flushed)}`;
}

/** What a node is meant for, where that is not the default. */
function standingWords(standing) {
  const [priority, never, delay, reads] = pick(standing, 'priority', 'never_promote', 'apply_delay_ms', 'serve_reads');
  const zone = maybe(standing, 'zone');
  return [
    zone !== null && `zone ${zone}`, priority !== null && priority !== 100 && `priority ${priority}`,
    delay > 0 && `replays ${duration(delay)} later`, reads === false && 'serves no reads', never && 'never promoted by itself',
  ];
}

function nodeNotes(n, age) {
  const [reachable, voter, fenced, fence, maintenance, quarantine, rejoin, trouble, from, standing, agent] = pick(n, 'agent_reachable',
    'voter', 'fenced', 'fence', 'maintenance', 'quarantine', 'rejoin', 'trouble', 'streams_from', 'standing', 'agent');
  const [fencedBy, fencedAt] = pick(fence, 'by', 'at');
  const [by, why, at, end] = pick(maintenance, 'by', 'why', 'at', 'until');
  const [floor, timeline] = pick(quarantine, 'lsn', 'timeline');
  const [lease, seen] = pick(agent, 'lease_left_ms', 'observed_ms_ago');
  return [
    trouble, rejoin,
    !reachable && 'its agent is silent',
    fenced && `FENCED${fence === null ? '' : ` by ${fencedBy} since ${utc(fencedAt)}`}`,
    maintenance !== null && `IN MAINTENANCE by ${by} since ${utc(at)}${until(end)}${because(why)}`,
    quarantine !== null && `quarantined until it has replayed ${floor} on timeline ${timeline}`,
    from !== null && `from ${from}`,
    reachable && seen + age > STALE_MS && `PostgreSQL last seen ${ago(seen, age)}`,
    reachable && lease !== null && `its lease had ${duration(lease)} left`,
    ...standingWords(standing),
    voter === false && 'does not vote', maybe(agent, 'namesake'),
  ].filter(Boolean).join('; ');
}

function nodesSection(answer) {
  const status = answer.body;
  const [primary] = pick(status, 'primary');
  const state = primaryState(status);
  const rows = list(status, 'nodes').map((n) => {
    const [node, role, word, timeline, received, replayed, behind, lag, from, silent] = pick(n, 'node', 'role', 'state', 'timeline',
      'receive_lsn', 'replay_lsn', 'replay_lag_bytes', 'replay_lag_ms', 'streams_from', 'silent_ms');
    const of = (text) => (role === 'primary' ? NONE : text);
    // Who does not stream may be further behind than anybody knows.
    const streams = from !== null;
    return [node, known(role), known(word), known(timeline), known(received), of(known(replayed)),
      of(streams ? bytes(behind) : UNKNOWN), of(streams ? duration(lag) : UNKNOWN), confirms(node, node === primary, state),
      ago(silent, answer.age), nodeNotes(n, answer.age)];
  });
  const heads = ['node', 'role', 'state', 'timeline', 'received', 'replayed', 'behind', 'lag', 'confirms commits', 'heard', 'notes'];
  const proxies = list(status, 'proxies').map((proxy) => pick(proxy, 'id', 'term', 'gate', 'busy').map(known));
  return section('Nodes', answer, table('nodes, as the managers know them', heads, rows),
    proxies.length > 0 && table('proxies, as they registered', ['proxy', 'term', 'gate', 'busy on the primary'], proxies));
}

// ---- Lag

function lagNotes(s) {
  const [unknown, upstream, from, pause, delay, conflicts] =
    pick(s, 'unknown', 'upstream', 'streams_from', 'replay_pause', 'apply_delay_ms', 'recovery_conflicts');
  return [
    unknown, upstream === 'cascade' && `cascade of ${from}`, upstream === 'elsewhere' && `streams from ${from}, no member`,
    pause !== null && `replay ${pause}`, delay !== null && `applies ${duration(delay)} late`,
    conflicts > 0 && `${conflicts} recovery conflicts`,
  ].filter(Boolean).join('; ');
}

/** Slots that agents did not make or that keep too much, and streams to who is no standby of the cluster. */
function nodeOddities(of) {
  const [node, sorts, collations] = pick(of, 'node', 'sorts_otherwise', 'collations');
  const slots = list(of, 'slots').map((s) => {
    const [name, kind, active, kept, wal, idle, invalid] =
      pick(s, 'slot', 'kind', 'active', 'retained_bytes', 'wal_status', 'inactive_ms', 'invalidation_reason');
    const ours = String(name).startsWith('pgtenure_') && (wal === null || wal === 'reserved');
    const state = active ? 'active' : `inactive${idle === null ? '' : ` for ${duration(idle)}`}`;
    const end = invalid === null ? '' : `, invalidated: ${invalid}`;
    return !ours && `slot ${name} on ${node} (${kind}): ${state}, retains ${bytes(kept)}, ${known(wal)}${end}`;
  });
  const senders = list(of, 'senders').map((s) => {
    const [name, kind, state] = pick(s, 'application_name', 'kind', 'state');
    return kind !== 'standby' && `${node} also sends to ${name} (${kind}): ${state}`;
  });
  const sorting = sorts === true && `${node} sorts text by other rules than the primary (${known(collations)})`;
  return [...slots, ...senders, sorting].filter(Boolean);
}

/** `own`: by a lag monitor; a manager has less, what the agents told it. */
function lagKids(answer, body, own, now) {
  const [term, primary] = pick(body, 'term', 'primary');
  const [node, insert] = pick(primary, 'node', 'insert_lsn');
  const rows = list(body, 'standbys').map((s) => {
    const [name, unknown, ms, behind, replayed, sampled] =
      pick(s, 'node', 'unknown', 'replay_lag_ms', 'replay_lag_bytes', 'replay_lsn', 'sample_age_ms');
    const [write, flush, heard] = own ? pick(s, 'write_lag_ms', 'flush_lag_ms', 'stream_age_ms') : [];
    const past = sparkTree(name, answer.past.get(name) ?? [], now);
    return [name, unknown === null ? duration(ms) : UNKNOWN, own || unknown === null ? bytes(behind) : UNKNOWN, ...(own ? [duration(write), duration(flush)] : []),
      known(replayed), ago(sampled, answer.age), ...(own ? [ago(heard, answer.age)] : []), past,
      own ? lagNotes(s) : orNone(unknown)];
  });
  const heads = ['standby', 'replay lag', 'behind', ...(own ? ['write lag', 'flush lag'] : []), 'replayed', 'sample age',
    ...(own ? ['stream heard'] : []), own ? 'last ten minutes' : 'since this page looks', 'notes'];
  const oddities = own ? list(body, 'nodes').flatMap(nodeOddities) : [];
  const by = own ? 'by the lag monitor of this process' : 'by what agents reported';
  const about = p(`term ${known(term)}, primary ${known(node)} at ${known(insert)}, ${by}`);
  return [about, rows.length > 0 ? table('replay lag', heads, rows) : p('no standbys known'), bullets(oddities)];
}

// ---- This process

function proxySection(state, answer) {
  const [term, gate, primary, clients, held, totals] = pick(state, 'term', 'gate', 'primary', 'clients', 'held_bytes', 'totals');
  const gauges = (of) => {
    const [sessions, waiting, busy, pUse, pIdle, sUse, sIdle] = pick(of, 'sessions', 'held', 'busy', 'primary_in_use',
      'primary_idle', 'standby_in_use', 'standby_idle').map(known);
    return [sessions, waiting, busy, `${pUse} in use, ${pIdle} idle`, `${sUse} in use, ${sIdle} idle`];
  };
  const [statements, refused] = pick(totals, 'statement_bytes', 'refused_shapes');
  const rows = list(state, 'workers').map((worker, i) => [String(i), ...pick(worker, 'term', 'gate').map(known), ...gauges(worker)]);
  const heads = ['worker', 'term', 'gate', 'clients', 'held or waiting', 'busy on the primary', 'connections to the primary',
    'connections to standbys'];
  return section('Proxy of this process', answer,
    facts([
      ['writes may be sent (gate)', known(gate)], ['term', known(term)], ['primary', known(primary)],
      ['clients connected', known(clients)],
      ['listens on', list(state, 'listen').join(', ') || NONE], ['memory of held statements', bytes(held)],
      ['memory of prepared statements', bytes(statements)], ['shapes of statements that standbys refused', known(refused)],
    ]),
    table('pools and clients, per worker', heads, [...rows, ['all', known(term), known(gate), ...gauges(totals)]]));
}

function agentSection(state, answer) {
  const [node, postgres, promise, seen, lease, frozen, rejoin, fenced, probe, trouble] = pick(state, 'node', 'postgres', 'promise',
    'observed_ms_ago', 'lease_left_ms', 'frozen_for', 'rejoin', 'fenced', 'fsync_probe_ms', 'trouble');
  return section('Agent of this process', answer,
    trouble !== null && alarm(trouble),
    facts([
      ['node', known(node)], ['PostgreSQL', known(pick(postgres, 'is')[0])], ['seen', ago(seen, answer.age)],
      ['highest term promised', known(promise)], ['lease left', lease === null ? 'holds none' : duration(lease)],
      ['frozen for term', orNone(frozen)], ['rejoin', orNone(rejoin)], ['last fsync probe', duration(probe)],
      ['fenced', fenced === null ? UNKNOWN : fenced ? 'YES' : 'no'],
    ]));
}

function processSection(answer, process, roles) {
  const [version, pid] = pick(process, 'version', 'pid');
  const rows = Object.entries(roles).map(([role, of]) => {
    const [ready, waits] = pick(of, 'ready', 'waits_for');
    return [role, ready === null ? UNKNOWN : ready ? 'ready' : 'NOT READY', orNone(waits)];
  });
  const about = p(`pgtenure ${known(version)}, pid ${known(pid)}`);
  return section('This process', answer, about, table('roles', ['role', 'ready', 'waits for'], rows));
}

// ---- What happened

function changeWords(journal) {
  const [term, cause, from, to, started, finished] = pick(journal, 'term', 'cause', 'from', 'to', 'started', 'finished');
  const took = last(list(journal, 'phases'));
  const time = took === undefined ? '' : ` in ${pick(took, 'ms')[0]} ms`;
  return `term ${term} by ${cause}, ${orNone(from)} → ${orNone(to)}${time}, ${finished ?? 'not finished'}, ${utc(started)}`;
}

/** Was all that the old primary had within the new term when it stopped? */
function stoppedCleanly(journal) {
  const [fork] = pick(journal, 'fork');
  const end = maybe(journal, 'clean_end');
  const [[forkLine, forkLsn], [endLine, endLsn]] = [pick(fork, 'timeline', 'lsn'), pick(end, 'timeline', 'lsn')];
  return fork !== null && end !== null && forkLine === endLine && reaches(forkLsn, endLsn);
}

const UNWRITTEN = 'not known: commits with synchronous_commit = off of the last moments before the old primary ended may have been '
  + 'answered and never written';
const UNOPENED = 'this term may never have been opened: then what it lacks may be in the next one, whose own report tells what '
  + 'that lacks';

/** What the WAL of an old primary held past the fork. */
function lossTree(loss) {
  const [node, fork, end, size, commits, aborts, span, suspended, place] = pick(loss, 'node', 'fork_lsn', 'end_lsn', 'bytes',
    'commits', 'aborts', 'span_ms', 'commits_while_suspended', 'kept_in');
  const [gap, kept] = [maybe(loss, 'unread_to'), maybe(loss, 'kept_to')];
  const all = list(loss, 'transactions').map((t) => pick(t, 'xid', 'lsn', 'committed_at').map(known));
  if (size === 0) {
    return p(`final, from the WAL of ${node}: nothing lost of what it had written, it ends at ${end} and the fork is at ${fork}`);
  }
  // A loss that was not counted must not read as none.
  const [how, least, lost] = gap === null ? ['final', '', known(commits)]
    : ['not whole', `, of which that up to ${gap} was not kept, at least`, Math.max(commits, 1)];
  let where = `that WAL is kept in ${place}`;
  if (kept !== null && reaches(fork, kept)) where = 'nothing of that WAL is kept: agent.lost_wal_max is less';
  else if (kept !== null) where += ` up to ${kept}: the rest was more than agent.lost_wal_max`;
  const shown = all.slice(0, SHOWN);
  return [
    p(`${how}, from the WAL of ${node}: ${bytes(size)} between the fork ${fork} and its end ${end}${least}: `,
      h('strong', null, `${lost} commits lost`), `, ${known(aborts)} aborts${span === null ? '' : `, within ${span} ms`}, `,
      `${known(suspended)} of the commits made while the mode was suspended`),
    shown.length > 0 && table(`lost commits, ${shown.length} of ${commits}`, ['xid', 'LSN', 'committed'], shown),
    place !== null && p(where),
  ];
}

/** What is known of losses, as `pgtenure report` has it. */
function losses(journal, reports) {
  const [cause, from, to, window, finished] = pick(journal, 'cause', 'from', 'to', 'window', 'finished');
  const clean = stoppedCleanly(journal);
  if (reports.length > 0) {
    return [...reports.map(lossTree), !clean && p(UNWRITTEN), finished !== null && finished !== 'active' && p(UNOPENED)];
  }
  if (cause === 'bootstrap') return [];
  if (clean) return [p('nothing lost: the old primary was stopped cleanly')];
  if (from !== null && from === to && window?.bytes === 0) {
    return [p('nothing lost of what the old primary had written: it is primary again'), p(UNWRITTEN)];
  }
  return [p('final: not known yet, the WAL of the old primary is read when it rejoins')];
}

/** What proxies told of the term that ended. */
function doubtWords(journal, doubts) {
  const [below] = pick(journal, 'below_mode');
  const told = doubts.map((d) => pick(d, 'survived', 'lost', 'unknown', 'below_mode'));
  const [survived, lost, unknown, lowered] = [0, 1, 2, 3].map((i) => told.reduce((all, one) => all + (one[i] ?? 0), 0));
  const commits = Math.max(lowered, below ?? 0);
  const none = 'no proxy has told of any';
  const fates = `${survived} survived and were answered so, ${lost} were lost and answered 40001, ${unknown} stayed unknown and were `
    + 'answered 08007';
  return [
    `commits acknowledged below the mode of the cluster: ${commits === 0 ? none : commits}`,
    `writes in doubt: ${survived + lost + unknown === 0 ? none : fates}`,
  ];
}

function lossOf(of) {
  const [term, commits, whole] = pick(of, 'term', 'commits', 'whole');
  return { term, commits, words: `${whole === false ? 'at least ' : ''}${commits}` };
}

function reportKids(body) {
  const [journal] = pick(body, 'journal');
  const [from, window, allowed, m, k] = pick(journal, 'from', 'window', 'data_loss_allowed', 'm', 'k');
  const [fork, heard, size, ms] = pick(window, 'fork_lsn', 'last_known_lsn', 'bytes', 'ms');
  let before = 0;
  const phases = list(journal, 'phases').map((phase) => {
    const [name, at] = pick(phase, 'phase', 'ms');
    const row = [name, `${at - before} ms`, `${at} ms`];
    before = at;
    return row;
  });
  const recruits = list(journal, 'recruits').map((r) => pick(r, 'node', 'lsn', 'timeline'));
  const others = list(body, 'losses').map(lossOf);
  const seen = [
    ...list(journal, 'observed').map((line) => `seen: ${line}`),
    ...recruits.map(([node, lsn, timeline]) => `frozen: ${node} at ${lsn} on timeline ${timeline}`),
    `${known(m)} voters, ${known(k)} copies beyond that of the primary`,
  ];
  const within = ms === null ? '' : ` in ${ms} ms`;
  return [
    p(changeWords(journal)), bullets(seen),
    allowed && alarm('an operator allowed data loss: what the old primary alone had may have been given up'),
    phases.length > 0 && table('phases', ['phase', 'took', 'since the first evidence'], phases),
    window !== null && p(`unreplicated-write window, provisional: ${bytes(size)}${within} from ${fork} to ${heard} as last heard of `,
      'the old primary, which may have written more since'),
    ...losses(journal, list(body, 'reports')),
    from !== null && bullets(doubtWords(journal, list(body, 'doubts'))),
    bullets(others.map((l) => `term ${l.term} lost ${l.words} commits: pgtenure report ${l.term}`)),
  ];
}

function historyKids(body) {
  const found = list(body, 'losses').map(lossOf);
  const all = list(body, 'history');
  const rows = all.slice(-SHOWN).reverse().map((journal) => {
    const [term, started, cause, from, to, window, finished] =
      pick(journal, 'term', 'started', 'cause', 'from', 'to', 'window', 'finished');
    const took = last(list(journal, 'phases'));
    const lost = stoppedCleanly(journal) ? '0' : cause === 'bootstrap' ? NONE : 'not known';
    return [known(term), utc(started), known(cause), orNone(from), orNone(to), took === undefined ? NONE : `${pick(took, 'ms')[0]} ms`,
      window === null ? NONE : bytes(pick(window, 'bytes')[0]), found.find((l) => l.term === term)?.words ?? lost,
      finished ?? 'not finished'];
  });
  const heads = ['term', 'started', 'cause', 'from', 'to', 'took', 'window', 'commits lost', 'outcome'];
  const caption = all.length > SHOWN ? `the newest ${SHOWN} of ${all.length}: pgtenure history has all` : 'newest first';
  return [rows.length > 0 ? table(caption, heads, rows) : p('no change of primary yet')];
}

// ---- The page

/** The clusters of a manager's process, by a status; its own is the first. */
function clustersOf(status) {
  return list(pick(status, 'process')[0], 'clusters');
}

/** What to ask this process for, by the status it gave last. `every`: milliseconds between two looks. */
function wanted(status, cluster) {
  const query = cluster === null ? [] : [`cluster=${encodeURIComponent(cluster)}`];
  const of = (path, ...more) => [path, [...more, ...query].join('&')].filter(Boolean).join('?');
  const paths = [{ key: 'status', path: of('status', 'local=1'), every: POLL_MS }];
  const [roles] = pick(pick(status, 'process')[0], 'roles');
  const manager = Boolean(roles?.manager) && status.error === undefined;
  if (!roles?.lagmon) {
    if (manager && status.leading === true) paths.push({ key: 'lag', path: of('lag'), every: POLL_MS });
  } else if (cluster === null || cluster === (clustersOf(status)[0] ?? cluster)) {
    // The past also fills the gap of a time out of sight.
    paths.push({ key: 'lag', path: 'lag', every: POLL_MS }, { key: 'past', path: 'lag/history', every: 30000 });
  }
  // Each of these is read from etcd anew.
  if (manager) paths.push({ key: 'report', path: of('report'), every: 10000 }, { key: 'terms', path: of('history'), every: 10000 });
  return paths;
}

/** What everybody must see: this process does not answer, or not as it should. */
function outage(answer) {
  if (answer.error === null) return null;
  const shown = answer.body === null ? '' : ` What is shown is ${duration(answer.age)} old.`;
  const words = answer.refused ? `This process answers: ${answer.error}.`
    : `No answer from this process since ${utc(answer.since)}: ${answer.error}.`;
  // What changes each second is not read out each second.
  return alarm(h('span', { role: 'alert' }, words), ` That was ${duration(answer.failing)} ago.${shown}`);
}

/** The whole page, of answers `{body, age, fresh, error, failing, since, refused, past}`. */
function pageOf(view) {
  const { status, lag, report, terms } = view;
  if (status.body === null) return [outage(status) ?? p('waiting for the first answer …')];
  const [process] = pick(status.body, 'process');
  const roles = pick(process, 'roles')[0] ?? {};
  // That it failed is said once.
  const mine = { ...status, error: null };
  const ofRole = (role, section) => {
    const [state] = pick(roles[role], 'state');
    return state !== null && section(state, mine);
  };
  const manager = Boolean(roles.manager) && !status.refused;
  const parts = [
    outage(status),
    manager && [verdictSection(mine), nodesSection(mine)],
    lag !== null && awaited('Replay lag', lag, (body) => lagKids(lag, body, Boolean(roles.lagmon), view.now)),
    ofRole('proxy', proxySection), ofRole('agent', agentSection),
    manager && report !== null && awaited('Last change of primary', report, reportKids),
    manager && terms !== null && awaited('History of terms', terms, historyKids),
    processSection(mine, process, roles),
  ];
  const other = 'This page is of another version than the process, load it again. Answers lack what it shows: ';
  return [lacking.size > 0 && alarm(other + [...lacking].join(', ')), ...parts];
}

/** What the window is called. */
function titleOf(status) {
  if (status.body === null || status.error !== null) return 'no answer – pgtenure';
  const { cluster } = status.body;
  if (cluster === undefined) return `${Object.keys(status.body.process?.roles ?? {}).join(', ')} – pgtenure`;
  return `${cluster}: ${verdictOf(status.body, status.age).word} – pgtenure`;
}

