//! The MPD of a stream, and since when it is what it is.

use super::{Inner, Live};
use crate::dvr::PastRuns;

/// The newest MPD that was given out, and when it first was, milliseconds since 1970.
#[derive(Debug, Default)]
pub(super) struct Published {
    text: String,
    unix_ms: i64,
}

impl Live {
    /// The MPD at `unix_ms`; `None` before the first run. As long as it says the same it is the same to the byte:
    /// `publishTime` is when it was first given out, so that caches may revalidate it, and players see that nothing is new.
    pub fn mpd(
        &self,
        latency_ms: u64,
        unix_ms: i64,
        time_url: &str,
        past: Option<&PastRuns>,
    ) -> Option<String> {
        let mut inner = self.lock();
        let Inner { state, broadcast, published, .. } = &mut *inner;
        let broadcast = broadcast.as_ref()?;
        let render = |published_unix_ms| broadcast.mpd(*state, latency_ms, published_unix_ms, time_url, past);
        // What is listed before the window is each viewer's own.
        if past.is_some() {
            return Some(render(unix_ms));
        }
        let text = render(published.unix_ms);
        if text == published.text {
            return Some(text);
        }
        // A later version is never published earlier, whatever the clock does.
        published.unix_ms = unix_ms.max(published.unix_ms + 1);
        published.text = render(published.unix_ms);
        Some(published.text.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::live::Found;
    use crate::live::tests::{T0, run};
    use media::{Epoch, RenditionId, SegmentNumber};

    fn publish_time(mpd: &str) -> &str {
        mpd.split("publishTime=\"").nth(1).unwrap().split('"').next().unwrap()
    }

    /// `Period` elements: id, start, duration.
    fn periods(mpd: &str) -> Vec<String> {
        mpd.lines().filter(|line| line.contains("<Period ")).map(|line| line.trim().to_owned()).collect()
    }

    #[test]
    fn an_absence_is_told_and_what_was_told_stays() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p", "audio"], 5);
        let told = |unix_ms| periods(&live.mpd(1500, unix_ms, "/time", None).unwrap());
        let away = live.interrupt(false);
        assert_eq!(told(T0 + 5000), ["<Period id=\"1\" start=\"PT1S\">"], "it may be back at once");
        assert!(live.stay_alive(away, T0 + 7000));
        let number = T0 as u64 / 1000;
        let first = "<Period id=\"1\" start=\"PT1S\" duration=\"PT3S\">".to_owned();
        let second = format!("<Period id=\"1-{}\" start=\"PT4S\" duration=\"PT2S\">", number + 3);
        assert_eq!(told(T0 + 7000), [first.clone(), second.clone()]);
        run(&live, 2, T0 + 10_000, &["360p", "audio"], 3);
        let third = "<Period id=\"2\" start=\"PT11S\"";
        assert_eq!(told(T0 + 14_000), [first.clone(), second.clone(), format!("{third}>")]);
        // There are others now: no cut.
        let away = live.interrupt(false);
        assert!(live.stay_alive(away, T0 + 16_000));
        let third = format!("{third} duration=\"PT3S\">");
        assert_eq!(told(T0 + 16_000), [first.clone(), second.clone(), third.clone()]);
        assert!(live.end(away));
        // The six seconds that are listed.
        let left = format!("<Period id=\"1-{}\" start=\"PT5S\" duration=\"PT1S\">", number + 3);
        assert_eq!(told(T0 + 70_000), [left, third]);
    }

    #[test]
    fn a_rung_that_is_shed_is_in_no_period_until_it_is_back() {
        let live = Live::new("demo".parse().unwrap());
        let names = ["720p", "360p", "audio"];
        // A window of six segments.
        run(&live, 1, T0, &names, 5);
        let (epoch, zero) = (Epoch(1), T0 as u64 / 1000);
        let number = |n| SegmentNumber(zero + n);
        let id = |name: &str| name.parse::<RenditionId>().unwrap();
        let segment = |n: u64, shed: &[&str]| {
            for name in names {
                if shed.contains(&name) {
                    live.gap(epoch, &id(name), number(n));
                    continue;
                }
                let ticks = if name == "audio" { 48_000 } else { 90_000 };
                live.open(epoch, &id(name), number(n), (n as i64 + 1) * ticks);
                live.part(epoch, &id(name), bytes::Bytes::from_static(b"media"), ticks, true);
                live.close(epoch, &id(name));
            }
        };
        // Each period: id, start, duration, and its representations.
        let told = || {
            let mpd = live.mpd(1500, T0, "/time", None).unwrap();
            let elements = mpd.split("<Period ").skip(1).map(|element| {
                let ids = element.split("<Representation id=\"").skip(1);
                let ids: Vec<_> = ids.map(|id| id.split('"').next().unwrap()).collect();
                let attributes = element.split('>').next().unwrap();
                format!("{} {}", attributes.replace(['"', '='], " ").replace("  ", " ").trim(), ids.join(" "))
            });
            elements.collect::<Vec<_>>()
        };
        assert_eq!(told(), ["id 1 start PT1S 720p 360p audio"]);
        live.shed(epoch, &id("720p"), number(5), true);
        let first = "id 1 start PT1S duration PT5S 720p 360p audio".to_owned();
        let second = format!("id 1-{} start PT6S", number(5));
        assert_eq!(told(), [first.clone(), format!("{second} 360p audio")]);
        // It is said at each segment.
        live.shed(epoch, &id("720p"), number(6), true);
        segment(5, &["720p"]);
        segment(6, &["720p"]);
        assert_eq!(told().len(), 2);
        let mpd = live.mpd(1500, T0, "/time", None).unwrap();
        assert_eq!(mpd.matches("period-continuity:2015\" value=\"1\"").count(), 2, "both sets go on: {mpd}");
        // Told three segments ahead.
        live.shed(epoch, &id("720p"), number(7), false);
        segment(7, &[]);
        let second = format!("{second} duration PT5S 360p audio");
        let third = format!("id 1-{} start PT11S", number(10));
        let all = format!("{third} 720p 360p audio");
        assert_eq!(told(), [first, second.clone(), all.clone()]);
        // What leaves the window is told of no more, and what is left is what it was.
        (8..11).for_each(|n| segment(n, &[]));
        assert_eq!(told(), [second, all.clone()]);
        (11..20).for_each(|n| segment(n, &[]));
        assert_eq!(told(), [all]);
        // The only period that is told must not end.
        let away = live.interrupt(false);
        assert!(live.stay_alive(away, T0 + 22_000));
        assert_eq!(
            told(),
            [
                format!("{third} duration PT8S 720p 360p audio"),
                format!("id 1-{} start PT19S duration PT2S 720p 360p audio", number(18))
            ]
        );
    }

    #[test]
    fn a_run_that_begins_without_a_rung_is_one_period() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["720p", "360p"], 0);
        let number = SegmentNumber(T0 as u64 / 1000);
        live.shed(Epoch(1), &"720p".parse().unwrap(), number, true);
        let told = periods(&live.mpd(1500, T0, "/time", None).unwrap());
        assert_eq!(told, [format!("<Period id=\"1-{number}\" start=\"PT1S\">")]);
    }

    #[test]
    fn places_without_media_are_known() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p"], 5);
        let number = T0 as u64 / 1000;
        let id: RenditionId = "360p".parse().unwrap();
        let gaps = |epoch: u64| {
            let is_gap = |n: &u64| live.is_gap(Epoch(epoch), &id, SegmentNumber(number + n));
            (0..20).filter(is_gap).collect::<Vec<_>>()
        };
        let asked = |n| live.segment(Epoch(1), &id, SegmentNumber(number + n));
        let away = live.interrupt(false);
        assert!(matches!(asked(5), Found::Later), "it may be back at once");
        assert!(gaps(1).is_empty());
        assert!(live.stay_alive(away, T0 + 7000));
        assert!(matches!(asked(5), Found::Never));
        assert_eq!(gaps(1), [5, 6, 7, 8, 9, 10], "two gaps, and what players may ask for ahead of them");
        run(&live, 2, T0 + 10_500, &["360p"], 3);
        assert_eq!(gaps(1), [5, 6, 7, 8, 9, 10, 11]);
        assert!(gaps(2).is_empty());
        assert!(gaps(3).is_empty());
        let other: RenditionId = "720p".parse().unwrap();
        assert!(!live.is_gap(Epoch(1), &other, SegmentNumber(number + 6)));
    }

    #[test]
    fn what_says_the_same_is_the_same() {
        let live = Live::new("demo".parse().unwrap());
        run(&live, 1, T0, &["360p", "audio"], 40);
        let mpd = |unix_ms| live.mpd(1500, unix_ms, "/time", None).unwrap();
        let first = mpd(T0 + 40_000);
        assert_eq!(publish_time(&first), "2023-11-14T22:14:00.000Z");
        assert_eq!(mpd(T0 + 41_000), first);
        live.interrupt(false);
        run(&live, 2, T0 + 50_000, &["360p", "audio"], 1);
        // A clock that was set back.
        let second = mpd(T0 + 39_000);
        assert_eq!(publish_time(&second), "2023-11-14T22:14:00.001Z");
        assert_eq!(mpd(T0 + 60_000), second);
        assert!(second.contains("period-connectivity:2015\" value=\"1\""), "{second}");
        assert!(!second.contains("period-continuity"), "there is a gap between: {second}");
    }
}
