//! How long a receiver that fails is left alone.
#![allow(clippy::unwrap_used)]

use super::*;

#[tokio::test]
async fn a_receiver_rests_longer_after_each_failure_and_is_back_after_a_success() {
    let (mut watch, now) = (Watch::new(), Instant::now());
    let left = |well| Left { undelivered: 3, receivers: [("webhook", well)].into() };
    for seconds in [30, 60, 120, 240, 480, 960, 1920, 3600, 3600] {
        watch.note(left(false), now);
        assert_eq!(watch.undelivered(), 3);
        assert!(watch.resting(now + Duration::from_secs(seconds - 1)).contains("webhook"), "{seconds}");
        assert!(watch.resting(now + Duration::from_secs(seconds)).is_empty(), "{seconds}");
    }
    watch.note(left(true), now);
    assert!(watch.resting(now).is_empty());
    watch.note(left(false), now);
    assert!(watch.resting(now + Duration::from_secs(30)).is_empty(), "from the beginning");
}
