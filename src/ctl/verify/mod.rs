//! `pgtenure verify reads`: are reads as fresh as promised? Writers and readers go through the endpoint like any client,
//! and every read is held against what had been acknowledged when it began.
//!
//! Exit codes: 0 every promise was checked and held; 1 a promise was broken, or too little could be checked; 2 refused,
//! nothing was done.

mod baseline;
pub mod checker;
mod ground;
mod reader;
mod report;
mod run;
pub mod spread;
mod writer;

use crate::args::{VerifyMode, VerifyReadsArgs};
use crate::{EXIT_FAILED, EXIT_REFUSED};
use anyhow::{Context, Result, bail};
use baseline::Baseline;
use checker::Mode;
use cluster::Clock;
use ground::Endpoint;
use reader::Reader;
use run::{Plan, Run};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use tokio::task::LocalSet;
use writer::Writer;

/// Most connections of a run: each also has its registers, which every read reads.
const MAX_CONNECTIONS: usize = 1000;

/// Run it.
pub fn run(args: &VerifyReadsArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(e) => return failed(&anyhow::Error::new(e).context("cannot start the runtime")),
    };
    match LocalSet::new().block_on(&runtime, verify(args)) {
        Ok(code) => code,
        Err(e) => failed(&e),
    }
}

fn failed(error: &anyhow::Error) -> ExitCode {
    eprintln!("{error:#}");
    ExitCode::from(EXIT_FAILED)
}

async fn verify(args: &VerifyReadsArgs) -> Result<ExitCode> {
    let endpoints = args.dsn.iter().map(|dsn| Endpoint::parse(dsn)).collect::<Result<Vec<_>>>()?;
    let modes = modes(&args.mode);
    let (readers, writers) = (usize::from(args.readers), usize::from(args.writers));
    if readers * (modes.len() + 1) + writers > MAX_CONNECTIONS {
        bail!("--readers and --writers: {MAX_CONNECTIONS} connections are the most");
    }
    let registers = writers + if modes.contains(&Mode::Session) { readers } else { 0 };
    if let Some(refusal) = ground::make(&endpoints[0], registers, args.replace).await? {
        eprintln!("refused: {refusal}");
        return Ok(ExitCode::from(EXIT_REFUSED));
    }
    // Whatever ends the run, the schema is dropped.
    let result = measure(args, &endpoints, modes, registers).await;
    let dropped = ground::drop_schema(&endpoints[0]).await;
    let result = result?;
    if args.json {
        println!("{:#}", result.json(args.reads));
    } else {
        print!("{}", result.text(args.reads));
    }
    dropped?;
    Ok(if result.complaint(args.reads).is_none() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILED) })
}

fn modes(asked: &[VerifyMode]) -> Vec<Mode> {
    let of = |asked: &VerifyMode| match asked {
        VerifyMode::Bounded => vec![Mode::Bounded],
        VerifyMode::Monotonic => vec![Mode::Monotonic],
        VerifyMode::Session => vec![Mode::Session],
        VerifyMode::Global => vec![Mode::Global],
        VerifyMode::All => Mode::ALL.to_vec(),
    };
    let mut modes: Vec<Mode> = asked.iter().flat_map(of).collect();
    modes.sort();
    modes.dedup();
    modes
}

async fn measure(
    args: &VerifyReadsArgs,
    endpoints: &[Endpoint],
    modes: Vec<Mode>,
    registers: usize,
) -> Result<run::Result> {
    // A standby may be so far behind, and may lack the table until then.
    tokio::time::sleep(args.max_replay_lag).await;
    let plan = Plan {
        modes: modes.clone(),
        ask: args.ask.clone(),
        max_replay_lag: args.max_replay_lag,
        standby_wait: args.standby_wait,
        until: Clock.now() + Duration::from_secs(args.seconds),
        reads: args.reads,
        pauses: (args.read_pause, args.write_pause),
        standby_share: (!args.primary_only).then_some(args.standby_share),
    };
    let run = Rc::new(Run::new(plan, registers));
    let mut tasks = tokio::task::JoinSet::new();
    let endpoint = |i: usize| endpoints[i % endpoints.len()].clone();
    let (readers, writers) = (usize::from(args.readers), usize::from(args.writers));
    for i in 0..writers {
        let writer = Writer { endpoint: endpoint(i), register: i, connection: None, writes: i };
        tasks.spawn_local(writer.write_on(run.clone()));
    }
    for (m, mode) in modes.into_iter().enumerate() {
        for i in 0..readers {
            let own = (mode == Mode::Session).then_some(writers + i);
            // Neighbouring modes begin at different endpoints.
            tasks.spawn_local(Reader { mode, index: i, endpoint: endpoint(i + m), own }.read_on(run.clone()));
        }
    }
    for i in 0..readers.min(baseline::SESSIONS) {
        tasks.spawn_local(Baseline { index: i, endpoint: endpoint(i) }.read_on(run.clone()));
    }
    let ended = async {
        while let Some(task) = tasks.join_next().await {
            task.context("a reader or a writer panicked")?;
        }
        Ok::<(), anyhow::Error>(())
    };
    let mut ended = std::pin::pin!(ended);
    tokio::select! {
        done = &mut ended => done?,
        _ = tokio::signal::ctrl_c() => {
            // What is on its way is answered first, so that the schema can be dropped.
            run.stop();
            ended.await?;
        }
    }
    Ok(run.result())
}
