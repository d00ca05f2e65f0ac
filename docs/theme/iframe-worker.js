// The search of a site that is opened from a folder: browsers start no worker from a file, so that its script runs in a
// hidden frame instead.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(address) {
      super()
      window.answered = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      this.frame.srcdoc = `<script>postMessage = data => parent.answered(data)</script><script src="${address}"></script>`
      this.ready = new Promise(done => { this.frame.onload = done })
      document.body.append(this.frame)
    }
    postMessage(data) {
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(new MessageEvent("message", { data })))
    }
  }
}
