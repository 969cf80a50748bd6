#![no_main]

#[path = "../src/startup.rs"]
mod startup;

libfuzzer_sys::fuzz_target!(|data: &[u8]| startup::check(data));
