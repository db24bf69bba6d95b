// Browsers start no worker for a page that is a file. There the search runs in a hidden frame, which takes and gives messages alike.
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      document.body.append(frame);
      this.inside = frame.contentWindow;
      const doc = frame.contentDocument;
      doc.open();
      doc.close();
      this.inside.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      const script = Object.assign(doc.createElement("script"), { src: new URL(url, document.baseURI).href });
      this.ready = new Promise((resolve) => script.addEventListener("load", resolve));
      doc.head.append(script);
    }

    async postMessage(data) {
      await this.ready;
      this.inside.dispatchEvent(new MessageEvent("message", { data }));
    }
  };
  window.Worker = window.IFrameWorker;
}
