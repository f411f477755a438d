// Command otlp takes traces as an OpenTelemetry collector does, decodes them with the collector's own code, and prints each
// span as a line of JSON.
//
// It listens on the address that it is given, and answers with 503 while the file that is named second exists.
package main

import (
	"encoding/json"
	"io"
	"log"
	"net/http"
	"os"

	"go.opentelemetry.io/collector/pdata/ptrace"
	"go.opentelemetry.io/collector/pdata/ptrace/ptraceotlp"
)

const protobuf = "application/x-protobuf"

type span struct {
	Service    string         `json:"service"`
	Pod        string         `json:"pod"`
	Trace      string         `json:"trace"`
	ID         string         `json:"id"`
	Parent     string         `json:"parent"`
	Name       string         `json:"name"`
	Kind       string         `json:"kind"`
	Start      int64          `json:"start"`
	End        int64          `json:"end"`
	Flags      uint32         `json:"flags"`
	Status     string         `json:"status"`
	Message    string         `json:"message"`
	Attributes map[string]any `json:"attributes"`
}

func main() {
	out := json.NewEncoder(os.Stdout)
	http.HandleFunc("POST /v1/traces", func(answer http.ResponseWriter, request *http.Request) {
		if _, err := os.Stat(os.Args[2]); err == nil {
			http.Error(answer, "busy", http.StatusServiceUnavailable)
			return
		}
		if kind := request.Header.Get("Content-Type"); kind != protobuf {
			http.Error(answer, kind, http.StatusUnsupportedMediaType)
			return
		}
		body, err := io.ReadAll(request.Body)
		if err != nil {
			return
		}
		traces := ptraceotlp.NewExportRequest()
		if err := traces.UnmarshalProto(body); err != nil {
			http.Error(answer, err.Error(), http.StatusBadRequest)
			return
		}
		for _, resource := range traces.Traces().ResourceSpans().All() {
			for _, scope := range resource.ScopeSpans().All() {
				for _, found := range scope.Spans().All() {
					if err := out.Encode(read(resource, found)); err != nil {
						log.Fatal(err)
					}
				}
			}
		}
		reply, err := ptraceotlp.NewExportResponse().MarshalProto()
		if err != nil {
			log.Fatal(err)
		}
		answer.Header().Set("Content-Type", protobuf)
		// The agent has gone: nobody misses it.
		_, _ = answer.Write(reply)
	})
	log.Fatal(http.ListenAndServe(os.Args[1], nil))
}

func read(resource ptrace.ResourceSpans, found ptrace.Span) span {
	of := resource.Resource().Attributes().AsRaw()
	text := func(name string) string {
		value, _ := of[name].(string)
		return value
	}
	return span{
		Service:    text("service.name"),
		Pod:        text("k8s.pod.name"),
		Trace:      found.TraceID().String(),
		ID:         found.SpanID().String(),
		Parent:     found.ParentSpanID().String(),
		Name:       found.Name(),
		Kind:       found.Kind().String(),
		Start:      found.StartTimestamp().AsTime().UnixMicro(),
		End:        found.EndTimestamp().AsTime().UnixMicro(),
		Flags:      found.Flags(),
		Status:     found.Status().Code().String(),
		Message:    found.Status().Message(),
		Attributes: found.Attributes().AsRaw(),
	}
}
