//! A report in headless Chromium: its charts and figures are there, in light and dark, wide and narrow.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::common::{Place, failure, hostveil};

fn chromium() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap();
    let found = std::env::split_paths(&path).map(|place| place.join("chromium")).find(|path| path.is_file());
    found.unwrap_or_else(|| {
        panic!("chromium is missing: install the package chromium (tools/test.sh does that)")
    })
}

/// What the browser makes of a page after a script of ours has run in it.
fn dom(place: &Place, page: &Path, width: u32, dark: bool) -> String {
    let mut command = Command::new("timeout");
    command.arg("120").arg(chromium()).args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]);
    command.arg(format!("--user-data-dir={}", place.path("profile").display()));
    command.arg(format!("--window-size={width},1000"));
    // The engine's own names: 0 is dark, 1 is light.
    command.arg(format!("--blink-settings=preferredColorScheme={}", u8::from(!dark)));
    command.arg(format!("file://{}", page.display()));
    let output = command.output().unwrap();
    assert!(output.status.success(), "chromium: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Notes on the page itself what a reader would see; a report of ours has no script.
const PROBE: &str = r#"<script>
const seen = {
  background: getComputedStyle(document.body).backgroundColor,
  overflow: document.documentElement.scrollWidth > document.documentElement.clientWidth,
  charts: [...document.querySelectorAll("figure svg")].map(svg => {
    const box = svg.getBoundingClientRect();
    const ink = svg.querySelector("text");
    return {
      width: box.width, height: box.height,
      shapes: svg.querySelectorAll("rect, circle, polyline").length,
      unthemed: [...svg.querySelectorAll("[fill], [stroke]")].filter(shape => {
        const style = getComputedStyle(shape);
        return [style.fill, style.stroke].some(color => /^rgb\(\d, \d, \d\)$/.test(color) && color !== "rgb(0, 0, 0)");
      }).length,
      text: ink ? ink.textContent.trim() : "", size: ink ? ink.getBoundingClientRect().height : 0,
    };
  }),
};
document.body.setAttribute("data-seen", JSON.stringify(seen));
</script>"#;

fn seen(place: &Place, page: &Path, width: u32, dark: bool) -> serde_json::Value {
    let dom = dom(place, page, width, dark);
    let attribute = dom.split("data-seen=\"").nth(1).expect("the script ran").split('"').next().unwrap();
    serde_json::from_str(&attribute.replace("&quot;", "\"").replace("&amp;", "&")).unwrap()
}

#[test]
fn the_charts_and_figures_are_there_in_light_and_dark_wide_and_narrow() {
    chromium();
    hostveil();
    let place = Place::new();
    let output = place.run("report -o out --rounds 2 --seconds 0.05 --size 16MiB --disks disks --work q32");
    assert_eq!(output.status.code(), Some(0), "{}", failure(&output).1);
    let html = std::fs::read_to_string(place.path("out/report.html")).unwrap();
    let plain = dom(&place, &place.path("out/report.html"), 1400, false);
    for word in [
        "What encryption costs on this machine",
        "Computing and encrypting",
        "fio randread 4k q32, thousand requests/s",
        "hostveil-luks",
        "qemu-luks",
        "hostveil-bench peers --servers",
        "slower than alone",
    ] {
        assert!(plain.contains(word), "{word}");
    }
    assert!(!html.contains("<script"), "a report runs nothing");

    let probed = place.path("probed.html");
    std::fs::write(&probed, html.replace("</body>", &format!("{PROBE}</body>"))).unwrap();
    let mut backgrounds = Vec::new();
    for (width, dark) in [(1400, false), (1400, true), (400, false), (400, true)] {
        let seen = seen(&place, &probed, width, dark);
        assert_eq!(seen["overflow"], false, "{width} pixels: the page is wider than the window");
        let charts = seen["charts"].as_array().unwrap();
        // Three each of the loop's, of scaling and of overhead, and two workloads.
        assert_eq!(charts.len(), 11);
        for chart in charts {
            let number = |name: &str| chart[name].as_f64().unwrap();
            assert!(number("width") > 250.0 && number("height") > 40.0 && number("shapes") >= 2.0, "{chart}");
            assert!(number("size") >= 9.0, "text of {} pixels: {chart}", number("size"));
            assert_eq!(chart["unthemed"], 0, "{chart}");
        }
        backgrounds.push(seen["background"].as_str().unwrap().to_owned());
    }
    assert_eq!(backgrounds[0], backgrounds[2]);
    assert_eq!(backgrounds[1], backgrounds[3]);
    assert_ne!(backgrounds[0], backgrounds[1], "dark is not light");
    place.is_clean();
}
