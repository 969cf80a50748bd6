#![no_main]

#[path = "../src/frontend.rs"]
mod frontend;

libfuzzer_sys::fuzz_target!(|data: &[u8]| frontend::check(data));
