package main

import (
	"encoding/json"
	"fmt"
	"io"

	"decant/service"
)

// jsonDisplay writes every event as one line. Each line is one write, so that a
// reader of a pipe never waits for the rest of it.
type jsonDisplay struct {
	events *json.Encoder
	people io.Writer
}

func newJSONDisplay(events, people io.Writer) *jsonDisplay {
	encoder := json.NewEncoder(events)
	encoder.SetEscapeHTML(false)
	return &jsonDisplay{events: encoder, people: people}
}

func (d *jsonDisplay) event(e service.Event) {
	if err := d.events.Encode(e); err != nil {
		d.note(fmt.Sprintf("warning: an event of kind %s has no JSON form: %v", e.Event, err))
	}
}

func (d *jsonDisplay) note(line string) { writeLine(d.people, line) }
func (d *jsonDisplay) close()           {}
