//! The pages in Chromium: beside a real run, and with texts that would like to be markup.

use g2rl_tests::big_journal::Size;
use g2rl_tests::browser::{ARROW_LEFT, Browser, ENTER, TAB};
use g2rl_tests::cluster::{Cluster, WorkerOptions};

use super::shown::Shown;

/// That nothing went wrong in the browser so far.
fn assert_quiet(browser: &Browser) {
    let console = browser.console().unwrap();
    assert!(console.is_empty(), "{console:#?}");
}

/// That nothing is wider than the window.
fn assert_fits(browser: &Browser, page: &str) {
    let width = browser
        .run("return document.documentElement.scrollWidth - document.documentElement.clientWidth")
        .unwrap();
    assert_eq!(width, 0, "{page} can be moved sideways");
}

/// Every control has a name, headings begin at one, and the landmarks are there.
fn assert_accessible(browser: &Browser, page: &str) {
    let faults = browser
        .run(
            "const faults = [];
             for (const tag of ['header', 'nav', 'main', 'footer', 'h1'])
                 if (document.querySelectorAll(`body > ${tag}, body > * > ${tag}, body > * > * > ${tag}`).length < 1)
                     faults.push('no ' + tag);
             for (const control of document.querySelectorAll('button, input, select, a[href], [role=img], [tabindex]'))
                 if (control.id !== 'main' && !control.innerText?.trim() && !control.getAttribute('aria-label')
                     && !control.getAttribute('aria-labelledby') && !control.labels?.length)
                     faults.push('no name: ' + control.cloneNode(false).getAttribute('class') + ' ' + control.tagName);
             let level = 1;
             for (const heading of document.querySelectorAll('h1, h2, h3, h4')) {
                 if (!heading.checkVisibility()) continue;
                 const next = Number(heading.tagName[1]);
                 if (next > level + 1) faults.push('heading ' + heading.innerText + ' leaves out a level');
                 level = next;
             }
             const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
             if (new Set(ids).size !== ids.length) faults.push('an id twice');
             return faults",
        )
        .unwrap();
    assert_eq!(faults, serde_json::json!([]), "{page}");
}

#[test]
fn a_run_is_watched_live() {
    let Some(browser) = Browser::start(1280, 900).unwrap() else { return };
    let mut cluster = Cluster::start(&["run.steps=100000", "evaluation.at_start=true"], None).unwrap();
    for name in ["a", "b"] {
        cluster.add(name, &WorkerOptions::default()).unwrap();
    }
    cluster.wait_for("step 2/").unwrap();
    let url = format!("http://{}/", cluster.http().address());

    // 1. Curves are drawn, and go on by themselves.
    browser.open(&url).unwrap();
    browser.wait("document.querySelectorAll('.plot canvas').length > 6").unwrap();
    browser.wait("document.querySelector('.legend b')?.innerText.match(/\\d/)").unwrap();
    browser.wait("document.querySelector('#phase').classList.contains('good')").unwrap();
    let before = browser.run("return document.querySelector('.tile dd').firstChild.data").unwrap();
    browser.wait(&format!("document.querySelector('.tile dd').firstChild.data !== {before}")).unwrap();
    // Arrow keys read a chart's points.
    browser.run("document.querySelector('.chart:not(.wide) .plot').focus()").unwrap();
    let label = "document.activeElement.getAttribute('aria-label')";
    browser.press(&[ARROW_LEFT, ARROW_LEFT]).unwrap();
    browser.wait(&format!("{label}.includes('at step ')")).unwrap();
    // The same as a table.
    browser.run("document.querySelector('.chart:not(.wide) details').open = true").unwrap();
    browser.wait("document.querySelectorAll('.chart:not(.wide) details tbody tr').length > 1").unwrap();
    assert_accessible(&browser, "overview");

    // 2. By keyboard: the first stop skips to the content, the second is a page.
    browser.run("document.activeElement.blur(); scrollTo(0, 0)").unwrap();
    browser.open(&format!("{url}#/overview")).unwrap();
    browser.run("document.querySelector('.skip').focus()").unwrap();
    browser.press(&[TAB, TAB, ENTER]).unwrap();
    browser.wait("location.hash === '#/geometry'").unwrap();
    browser.wait("document.querySelector('nav [aria-current=page]').innerText === 'Geometry'").unwrap();
    browser.wait("document.querySelector('canvas.map').width > 1").unwrap();
    assert_accessible(&browser, "geometry");

    // 3. Ranks are listed, with what they do.
    browser.open(&format!("{url}#/ranks")).unwrap();
    browser.wait("document.querySelectorAll('tbody tr').length === 2").unwrap();
    browser.wait("/a-cpu.*cpu.*[MG]iB/s.test(document.querySelector('tbody').innerText)").unwrap();
    assert_accessible(&browser, "ranks");

    // 4. A group is opened, with its responses and their cosines.
    browser.open(&format!("{url}#/groups")).unwrap();
    browser.wait("document.querySelectorAll('a.item').length > 5").unwrap();
    browser.press(&["j"]).unwrap();
    browser.wait("document.querySelectorAll('.response').length === 4").unwrap();
    browser.wait("document.querySelectorAll('table.cosines tbody tr').length === 4").unwrap();
    browser.wait("document.querySelector('.prompt .text').innerText.includes('>')").unwrap();
    let first = browser.run("return location.hash").unwrap();
    browser.press(&["j"]).unwrap();
    browser
        .wait(&format!("location.hash !== {first} && document.querySelectorAll('.response').length === 4"))
        .unwrap();
    assert_accessible(&browser, "groups");

    // 5. The configuration, and both themes.
    browser.open(&format!("{url}#/config")).unwrap();
    browser.wait("document.querySelector('pre.toml')?.innerText.includes('[rollout]')").unwrap();
    let ground = || browser.run("return getComputedStyle(document.body).backgroundColor").unwrap();
    let mut grounds = Vec::new();
    for theme in ["light", "dark"] {
        browser.run("document.getElementById('theme').click()").unwrap();
        browser.wait(&format!("document.documentElement.dataset.theme === '{theme}'")).unwrap();
        grounds.push(ground());
    }
    assert_ne!(grounds[0], grounds[1]);
    assert_quiet(&browser);
}

#[test]
fn filters_and_pages_of_a_long_run_work_on_a_phone() {
    let Some(browser) = Browser::start(360, 740).unwrap() else { return };
    let shown = Shown::start(Size { steps: 60, groups: 10, group_size: 4 }, None);
    let url = format!("http://{}/", shown.address);
    browser.open(&format!("{url}#/overview")).unwrap();
    browser.wait("document.querySelectorAll('.plot canvas').length > 6").unwrap();
    for page in ["overview", "geometry", "groups", "ranks", "config"] {
        browser.open(&format!("{url}#/{page}")).unwrap();
        browser
            .wait(&format!("document.querySelector('nav [aria-current=page]').hash === '#/{page}'"))
            .unwrap();
        browser.wait("!document.querySelector('main').innerText.includes('Loading')").unwrap();
        assert_fits(&browser, page);
        assert_accessible(&browser, page);
    }

    let choose = |filter: &str| {
        let script = "const select = document.querySelector('select[name=filter]'); select.value = 'FILTER';
                      select.dispatchEvent(new Event('change', { bubbles: true }))";
        browser.run(&script.replace("FILTER", filter)).unwrap();
    };
    browser.open(&format!("{url}#/groups")).unwrap();
    browser.wait("document.querySelector('.pager').innerText.includes('600 groups')").unwrap();
    let total = |filter: &str| shown.api(&format!("groups?filter={filter}"))["total"].as_u64().unwrap();
    for filter in ["truncated", "wrong_novel", "right_redundant", "mixed"] {
        let total = total(filter);
        assert!(total > 0 && total < 600, "{filter}: {total}");
        choose(filter);
        browser
            .wait(&format!("document.querySelector('.pager').innerText.includes('{total} groups')"))
            .unwrap();
    }
    // A page further and back.
    choose("all");
    browser.wait("document.querySelector('a.item')?.innerText.includes('Group 599')").unwrap();
    let turn = |to: &str| {
        let script =
            "[...document.querySelectorAll('.pager button')].find(b => b.innerText === 'TO').click()";
        browser.run(&script.replace("TO", to)).unwrap();
    };
    turn("Older");
    browser.wait("document.querySelector('a.item')?.innerText.includes('Group 579')").unwrap();
    turn("Newer");
    browser.wait("document.querySelector('a.item')?.innerText.includes('Group 599')").unwrap();
    // A search, typed and sent by keyboard.
    browser.run("document.activeElement.blur()").unwrap();
    browser.press(&["/"]).unwrap();
    browser
        .press(
            &"look at group 123."
                .chars()
                .map(String::from)
                .collect::<Vec<_>>()
                .iter()
                .map(String::as_str)
                .collect::<Vec<_>>(),
        )
        .unwrap();
    browser.press(&[ENTER]).unwrap();
    browser.wait("document.querySelectorAll('a.item').length === 1").unwrap();
    browser.run("document.querySelector('a.item').click()").unwrap();
    browser.wait("document.querySelector('#group-title')?.innerText === 'Group 123'").unwrap();
    assert_fits(&browser, "an open group");
    assert_quiet(&browser);
}

#[test]
fn a_response_is_text_whatever_it_holds() {
    let Some(browser) = Browser::start(1280, 900).unwrap() else { return };
    let shown = Shown::start(Size { steps: 2, groups: 2, group_size: 2 }, None);
    browser.open(&format!("http://{}/#/groups/0", shown.address)).unwrap();
    browser.wait("document.querySelector('.response .text')?.innerText.includes('<script>')").unwrap();
    browser.wait("document.querySelector('.response .text').innerText.includes('onerror=')").unwrap();
    browser.wait("document.querySelector('.prompt .text').innerText.includes('<b>stops</b>')").unwrap();
    let markup = browser
        .run("return [window.markupRan ?? null, document.querySelectorAll('main img, main script, main b b').length]")
        .unwrap();
    assert_eq!(markup, serde_json::json!([null, 0]));
    // The policy forbids it also where a page would be careless.
    let script = "const s = document.createElement('script'); s.textContent = 'window.markupRan = true';
                  document.body.append(s); return window.markupRan ?? null";
    assert!(browser.run(script).unwrap().is_null());
}
