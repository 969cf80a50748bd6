//! lagmon
