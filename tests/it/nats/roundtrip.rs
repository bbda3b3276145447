//! What is restored is what was captured, by our own fingerprints and by an independent client.

use super::*;

#[test]
fn from_each_version_to_each_that_is_not_older() {
    for (from, to) in [
        (NatsVersion::V29, NatsVersion::V29),
        (NatsVersion::V29, NatsVersion::V215),
        (NatsVersion::V215, NatsVersion::V215),
    ] {
        let (source, target) = (Nats::start(from), Nats::start(to));
        source.fill("altlas", 2000, 1);
        let workspace = initialised(Mode::Clear, &source);
        back_up(&workspace);
        workspace.run(&["verify", "latest", "--level", "content"]).ok();
        restore(&workspace, &target, &[]).ok();
        source.digest(&["--messages"]).assert_same(&target.digest(&["--messages"]));
    }
}
