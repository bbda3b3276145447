//! NATS: sources, servers that copy from them, and servers in use are refused, and nothing is done to them.

use std::net::SocketAddr;

use serde_json::{Value, json};

use crate::support::{
    free_port,
    nats::{Nats, NatsVersion},
    proof::Given,
    proxy::TcpProxy,
    wait_for,
};

const SOON: std::time::Duration = std::time::Duration::from_secs(60);

/// It is refused for this, and nothing of it is another: neither by the claim nor by a release that nobody should have asked for.
#[track_caller]
fn left_alone(server: &Nats, others: &[&Nats], words: &str) {
    let given = Given::nats(server);
    let others: Vec<_> = others.iter().map(|other| Given::nats(other).identity()).collect();
    let before = server.digest(&["--messages"]);
    let what = given.refused(&others);
    assert!(what.contains(words), "`{words}` is not in: {what}");
    given.release();
    assert_eq!(server.digest(&["--messages"]), before);
}

#[test]
fn the_source_by_any_name() {
    for version in NatsVersion::ENDS {
        let source = Nats::start(version);
        source.fill("altlas", 50, 41);
        left_alone(&source, &[&source], "is source 127.0.0.1:");
        let identity = Given::nats(&source).identity();
        let proxy = TcpProxy::start(SocketAddr::from(([127, 0, 0, 1], source.port())));
        for (host, port) in [("localhost", source.port()), ("127.0.0.1", proxy.port())] {
            let url = format!("nats://{}@{host}:{port}", source.user());
            let given = Given::at("nats", &url, &source.password_file());
            let what = given.refused(std::slice::from_ref(&identity));
            assert!(what.contains(&format!("{host}:{port} is source 127.0.0.1:")), "{what}");
        }
        // Also where the source cannot be asked who it is.
        left_alone(&source, &[], "has a stream `");
    }
}

#[test]
fn a_server_in_use() {
    for version in NatsVersion::ENDS {
        let server = Nats::start(version);
        server.ask("STREAM.CREATE.ORDERS", &json!({ "name": "ORDERS", "subjects": ["orders.>"] }));
        server.publish("orders.new", b"precious");
        left_alone(&server, &[], "has a stream `ORDERS`: it is in use");
        // What a proof left beside what somebody uses.
        let left = json!({ "name": "LEFT", "subjects": ["left"], "description": "altlas-backup: throwaway" });
        server.ask("STREAM.CREATE.LEFT", &left);
        let what = Given::nats(&server).refused(&[]);
        assert!(what.contains("has a stream `ORDERS`"), "{what}");
        assert_eq!(server.streams(), ["LEFT", "ORDERS"]);
        server.delete_stream("ORDERS");
        // An application that uses no stream.
        let application = server.connection();
        let what = Given::nats(&server).refused(&[]);
        assert!(what.contains("others are connected (Client 127.0.0.1:"), "{what}");
        assert_eq!(server.streams(), ["LEFT"]);
        drop(application);
        Given::nats(&server).claim(&[]).unwrap();
        assert_eq!(server.streams(), Vec::<String>::new());
    }
}

/// A server that copies a stream of the source; one that passes on what it is asked to the source; and one that is tied to it.
#[test]
fn a_server_that_is_tied_to_the_source() {
    for version in NatsVersion::ENDS {
        let port = free_port();
        let hub = format!(
            "leafnodes {{ host: \"127.0.0.1\", port: {port}, authorization {{ user: leaf, password: \"PASSWORD\" }} }}"
        );
        let source = Nats::start_with(version, &["server_name: hub", &hub]);
        source.ask("STREAM.CREATE.ORDERS", &json!({ "name": "ORDERS", "subjects": ["orders.>"] }));
        source.publish("orders.new", b"precious");
        let before = source.digest(&["--messages"]);
        let remote =
            format!("leafnodes {{ remotes: [ {{ url: \"nats://leaf:{}@127.0.0.1:{port}\" }} ] }}", source.password());
        // Its own JetStream, in a domain of its own.
        let tied = Nats::start_with(version, &["server_name: edge", &remote]);
        let leaves = || source.connection().request("$SYS.REQ.ACCOUNT.PING.CONNZ", b"").unwrap().json();
        wait_for("the servers to be tied", SOON, || leaves().to_string().contains("Leafnode").then_some(()));
        let what = Given::nats(&tied).refused(&[]);
        // The older ones say that they are of a cluster.
        let words = ["of the cluster `edge`", "others are connected", "has a stream"];
        assert!(words.iter().any(|words| what.contains(words)), "{what}");
        let mirror = json!({ "name": "COPY", "mirror": { "name": "ORDERS" } });
        let alone = Nats::start(version);
        alone.ask("STREAM.CREATE.COPY", &mirror);
        left_alone(&alone, &[&source], "has a stream `COPY`");
        assert_eq!(source.digest(&["--messages"]), before);
    }
}

/// One without JetStream passes on what it is asked to one that has: the source's streams are not its own to empty.
#[test]
fn a_server_that_passes_on_what_it_is_asked() {
    use crate::support::nats::Setup;
    let port = free_port();
    let hub = format!(
        "leafnodes {{ host: \"127.0.0.1\", port: {port}, authorization {{ user: leaf, password: \"PASSWORD\" }} }}"
    );
    // A hub whose JetStream holds nothing, so that nothing but that tells.
    let source = Nats::start_with(NatsVersion::V215, &["server_name: hub", &hub]);
    let remote =
        format!("leafnodes {{ remotes: [ {{ url: \"nats://leaf:{}@127.0.0.1:{port}\" }} ] }}", source.password());
    let leaf =
        Nats::start_as(NatsVersion::V215, Setup::new().without_jetstream().lines(&["server_name: leaf", &remote]));
    let asked = || leaf.connection().request("$JS.API.INFO", b"").unwrap();
    let passes = wait_for("the servers to be tied", SOON, || {
        let connections = source.connection().request("$SYS.REQ.ACCOUNT.PING.CONNZ", b"").unwrap().json();
        connections.to_string().contains("Leafnode").then(|| asked().status.is_none())
    });
    match passes {
        true => {
            let what = Given::nats(&leaf).refused(&[]);
            assert!(what.contains("has no JetStream of its own"), "{what}");
        }
        // It says itself that it has none.
        false => {
            let error = Given::nats(&leaf).claim(&[]).unwrap_err().to_string();
            assert!(error.contains("no JetStream") || error.contains("of the cluster `leaf`"), "{error}");
        }
    }
    assert_eq!(source.request("STREAM.NAMES", &Value::Null)["total"], 0);
}
