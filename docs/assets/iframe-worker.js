// Search in pages that are opened as files: browsers start no worker there, so its script runs in a hidden frame.
// The theme's worker asks for a class of this name in `parent`.
if (location.protocol === "file:") {
  class IFrameWorker extends EventTarget {
    constructor(url) {
      super()
      this.frame = document.createElement("iframe")
      this.frame.hidden = true
      document.body.append(this.frame)
      const inside = this.frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      const script = inside.document.createElement("script")
      this.ready = new Promise((resolve, reject) => {
        script.onload = resolve
        script.onerror = reject
      })
      script.src = url
      inside.document.body.append(script)
    }

    postMessage(data) {
      const message = new MessageEvent("message", { data })
      this.ready.then(() => this.frame.contentWindow.dispatchEvent(message))
    }

    terminate() {
      this.frame.remove()
    }
  }
  window.IFrameWorker = window.Worker = IFrameWorker
}
