// What is wrong with the page that is open, as sentences; `.ci/site.py` runs it in the browser
(() => {
  const wrong = [], main = document.querySelector('main'), width = document.documentElement.clientWidth
  if (!main) return ['there is no main part']
  document.querySelectorAll('details').forEach(o => { o.open = true })
  const named = o => o.tagName.toLowerCase() + (o.className && o.className.split ? '.' + o.className.split(' ')[0] : '')
    + ' "' + o.textContent.trim().slice(0, 40) + '"'
  const scrolls = o => o && (['auto', 'scroll', 'hidden'].includes(getComputedStyle(o).overflowX) || scrolls(o.parentElement))

  if (main.innerText.split(/\s+/).length < 25) wrong.push('the body is empty')
  if (document.documentElement.scrollWidth > width + 1) {
    const wide = [...main.querySelectorAll('*')].find(o => o.getBoundingClientRect().right > width + 1 && !scrolls(o.parentElement))
    wrong.push(`scrolls sideways (${document.documentElement.scrollWidth} of ${width} pixels): ${wide ? named(wide) : 'outside main'}`)
  }
  for (const o of main.querySelectorAll('pre'))       // what was printed, and diagrams, may scroll on a phone
    if (o.scrollWidth > o.clientWidth + 1 && (width > 1000 || o.matches('.sourceCode'))) wrong.push('cut off: ' + named(o))
  for (const o of main.querySelectorAll('img')) {
    if (!o.alt.trim()) wrong.push('a picture without alternative text: ' + o.src.split('/').slice(-2).join('/'))
    if (o.complete && !o.naturalWidth) wrong.push('a picture that does not load: ' + o.src)
  }

  const rgba = text => { const v = text.match(/[\d.]+/g).map(Number); return v.length < 4 ? [...v, 1] : v }
  const over = (a, b) => [0, 1, 2].map(i => a[i] * a[3] + b[i] * (1 - a[3])).concat(1)
  const ground = o => {                                // the colours behind an element, painted over each other
    if (!o) return [255, 255, 255, 1]
    const c = rgba(getComputedStyle(o).backgroundColor)
    return c[3] === 1 ? c : over(c, ground(o.parentElement))
  }
  const light = c => c.slice(0, 3).map(v => v / 255).map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0)
  const seen = new Set(), texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT)
  while (texts.nextNode()) {
    const o = texts.currentNode.parentElement
    if (!texts.currentNode.data.trim() || seen.has(o) || !o.getClientRects().length || o.closest('script, style')) continue
    seen.add(o)
    const style = getComputedStyle(o), back = ground(o)
    if (style.visibility === 'hidden') continue
    const pair = [light(over(rgba(style.color), back)), light(back)].sort((a, b) => b - a)
    const contrast = (pair[0] + .05) / (pair[1] + .05)
    if (contrast < 4.5) wrong.push(`contrast ${contrast.toFixed(1)}: ${named(o)}`)
  }
  return wrong
})()
