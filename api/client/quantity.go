package client

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"decant/units"
)

// Size is a number of bytes, or a text such as "64MiB".
type Size int64

// UnmarshalJSON implements json.Unmarshaler.
func (s *Size) UnmarshalJSON(data []byte) error {
	n, err := quantity(data, units.ParseBytes)
	*s = Size(n)
	return err
}

// Rate is a number of bytes per second, or a text such as "50MiB/s"; 0 is no limit.
type Rate int64

// UnmarshalJSON implements json.Unmarshaler.
func (r *Rate) UnmarshalJSON(data []byte) error {
	n, err := quantity(data, units.ParseRate)
	*r = Rate(n)
	return err
}

// Period is a time as Go writes it, such as "500ms" or "1m30s".
type Period time.Duration

// UnmarshalJSON implements json.Unmarshaler.
func (p *Period) UnmarshalJSON(data []byte) error {
	var text string
	if err := json.Unmarshal(data, &text); err != nil {
		return errors.New("not a time with its unit, for example \"500ms\"")
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return errors.New("not a time with its unit, for example \"500ms\"")
	}
	*p = Period(d)
	return nil
}

// MarshalJSON implements json.Marshaler.
func (p Period) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(p).String()) }

// quantity reads a number that is an integer as it stands, or a text.
func quantity(data []byte, parse func(string) (int64, error)) (int64, error) {
	data = bytes.TrimSpace(data)
	if len(data) > 0 && data[0] == '"' {
		var text string
		if err := json.Unmarshal(data, &text); err != nil {
			return 0, err
		}
		return parse(text)
	}
	n, err := strconv.ParseInt(string(data), 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%.40s is not a whole number from 0 to 2^63-1, nor a text with a unit", data)
	}
	return n, nil
}
