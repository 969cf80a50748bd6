//! The nemesis: a cluster on hosts of its own (network namespaces), faults from scenario files, a workload through both
//! proxies, and a checker of what clients were told.
//!
//! * [`sandbox`]: the namespaces, the bridge between them and what is dropped on it;
//! * `delay`: packets that wait; [`disk`]: a file system per database host that can be filled and frozen;
//! * [`world`]: the processes on the hosts, how to kill, stop and heal them;
//! * [`scenario`]: scenario files, as text and as steps;
//! * [`play`]: what each step does;
//! * [`load`]: the workload; [`told`]: what it was told; [`deeds`]: what agents did;
//! * [`check`]: what must hold of that;
//! * `records`: what the product has on record; `collect`: that and what nodes hold in the end;
//! * [`run`]: one run from a healthy cluster to a verdict; [`session`]: many of them, in as few worlds as will do;
//! * [`outage`]: many failovers of one kind, timed;
//! * [`saturation`]: no fault at all, on a machine without a free core and with disks that stall.

pub mod check;
mod check_nodes;
mod check_reports;
mod check_sessions;
mod collect;
pub mod deeds;
mod delay;
pub mod disk;
pub mod load;
pub mod outage;
pub mod play;
mod records;
pub mod run;
pub mod sandbox;
pub mod saturation;
pub mod scenario;
pub mod session;
pub mod told;
pub mod world;
