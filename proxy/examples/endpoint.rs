//! A primary, a standby and the endpoint before them, until the standard input ends: for trying things by hand and for
//! comparing the endpoint with a direct connection.

#[path = "../tests/common/mod.rs"]
mod common;

fn main() {
    let cluster = common::Cluster::start(1, |raw| {
        raw.pool_size = std::env::var("POOL").map_or(20, |n| n.parse().expect("a number"));
        if let Some(port) = std::env::args().nth(1) {
            raw.listen = ([127, 0, 0, 1], port.parse().expect("the argument is a port")).into();
        }
    });
    println!("endpoint: {}", cluster.dsn());
    for node in &cluster.nodes {
        println!("{}: port {}", node.name, node.port);
    }
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line).is_ok_and(|n| n > 0) {
        let status = cluster.handle.as_ref().expect("it runs").status();
        println!("{}", serde_json::to_string(&status).expect("it serialises"));
    }
}
