#![no_main]

#[path = "../src/classify.rs"]
mod classify;

libfuzzer_sys::fuzz_target!(|data: &[u8]| classify::check(data));
