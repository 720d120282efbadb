package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

const (
	mostBodyBytes = 1 << 20
	mostDepth     = 16
	mostNames     = 64 // in one object
)

// decodeStrict reads one JSON value into v and refuses what encoding/json passes
// over in silence: a name that comes twice in one object, perhaps in another case, of
// which the last would win; text that is not UTF-8, which would turn into another name; names that v does
// not have; anything behind the value; and depths that no request needs.
func decodeStrict(data []byte, v any) error {
	if !utf8.Valid(data) {
		return errors.New("the body is not UTF-8")
	}
	if err := checkTokens(data); err != nil {
		return err
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	return decoder.Decode(v)
}

// checkTokens walks one JSON value without keeping it.
func checkTokens(data []byte) error {
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.UseNumber()
	if err := checkValue(decoder, 0); err != nil {
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return errors.New("the body ends within its JSON value")
		}
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("the body goes on behind its JSON value")
	}
	return nil
}

func checkValue(decoder *json.Decoder, depth int) error {
	token, err := decoder.Token()
	if err != nil {
		return err
	}
	delim, ok := token.(json.Delim)
	if !ok {
		return nil
	}
	if depth++; depth > mostDepth {
		return fmt.Errorf("the body is nested more than %d deep", mostDepth)
	}
	var names []string
	for decoder.More() {
		if delim == '{' {
			if names, err = addName(decoder, names); err != nil {
				return err
			}
		}
		if err := checkValue(decoder, depth); err != nil {
			return err
		}
	}
	_, err = decoder.Token() // the closing one
	return err
}

// addName reads a name of an object and adds it to those that came before.
func addName(decoder *json.Decoder, names []string) ([]string, error) {
	token, err := decoder.Token()
	if err != nil {
		return nil, err
	}
	name, _ := token.(string) // the decoder lets nothing else stand there
	if len(names) >= mostNames {
		return nil, fmt.Errorf("an object has more than %d names", mostNames)
	}
	for _, other := range names {
		if strings.EqualFold(name, other) { // encoding/json takes them for the same
			return nil, fmt.Errorf("the name %.100q comes twice in one object", name)
		}
	}
	return append(names, name), nil
}
