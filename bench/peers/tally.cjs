// What a consumer counts, as bench/tally.py does.
'use strict'

exports.tally = () => {
  const warm = 1
  let begun = Infinity
  let last = 0
  const latencies = []
  const round = (x, digits) => Number(x.toFixed(digits))
  return {
    add (payload) {
      const now = (performance.timeOrigin + performance.now()) / 1000
      if (begun === Infinity) begun = now + warm
      if (now >= begun) {
        latencies.push(typeof payload?.t === 'number' ? now - payload.t : 0)
        last = now
      }
    },
    report () {
      if (latencies.length === 0) return { messages: 0, messages_s: 0 }
      latencies.sort((a, b) => a - b)
      const at = (p) => round(latencies[Math.min(latencies.length - 1, Math.floor(latencies.length * p / 100))] * 1000, 3)
      return {
        messages: latencies.length,
        messages_s: round(latencies.length / Math.max(last - begun, 0.001), 1),
        p50_ms: at(50),
        p95_ms: at(95),
        p99_ms: at(99),
        max_ms: round(latencies[latencies.length - 1] * 1000, 3)
      }
    },
    untilTold (stop) {
      const finish = async () => {
        console.log(JSON.stringify(this.report()))
        setTimeout(() => process.exit(0), 2000).unref()
        await stop()
        process.exit(0)
      }
      process.on('SIGTERM', finish)
      process.on('SIGINT', finish)
    }
  }
}
